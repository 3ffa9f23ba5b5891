//! The stack machine that runs pickles, over an arena of values.

use std::collections::HashMap;

use crate::error::{Result, Within, pickle_error};
use crate::import::pickle_value::{Value, ValueId};

/// The limit of values, and of entries on the stack, marks and memo entries: one byte can make one. The state dict of a
/// large model makes some thousands.
const VALUE_LIMIT: usize = 1 << 20;

/// The longest name of a module, or of an item in it, in bytes: a name is copied from texts that may be shared.
const NAME_LIMIT: usize = 128;

/// The values that a pickle makes, and the id of the pickled one.
pub(crate) fn run(bytes: &[u8]) -> Result<(Vec<Value>, ValueId)> {
    let (values, stack, marks) = (Vec::new(), Vec::new(), Vec::new());
    let mut machine = Machine { bytes, at: 0, values, stack, marks, memo: HashMap::new() };
    let result = machine.run();
    let root = result.within(|| format!("byte {} of the pickle", machine.at))?;
    Ok((machine.values, root))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<ValueId>,
    /// Heights of the stack at the marks.
    marks: Vec<usize>,
    memo: HashMap<u64, ValueId>,
}

impl<'a> Machine<'a> {
    /// Runs to the end of the program.
    fn run(&mut self) -> Result<ValueId> {
        loop {
            let [code] = self.take()?;
            self.check_limits()?;
            match code {
                b'.' => return self.pop(),
                0x80 => drop(self.take::<1>()?),
                0x95 => drop(self.take::<8>()?),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.above_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                _ if self.constant(code)? || self.collection(code)? || self.memory(code)? => {}
                _ => self.object(code)?,
            }
        }
    }

    /// Numbers, texts and the like.
    fn constant(&mut self, code: u8) -> Result<bool> {
        let value = match code {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'K' => Value::Int(u8::from_le_bytes(self.take()?).into()),
            b'M' => Value::Int(u16::from_le_bytes(self.take()?).into()),
            b'J' => Value::Int(i32::from_le_bytes(self.take()?).into()),
            0x8a => {
                let [length] = self.take()?;
                Value::Int(long(self.bytes(length.into())?)?)
            }
            b'G' => Value::Float(f64::from_be_bytes(self.take()?)),
            b'X' => {
                let length = u32::from_le_bytes(self.take()?);
                self.utf8(u64::from(length))?
            }
            0x8c => {
                let [length] = self.take()?;
                self.utf8(length.into())?
            }
            0x8d => {
                let length = u64::from_le_bytes(self.take()?);
                self.utf8(length)?
            }
            // Bytes, and strings of Python 2. Nothing that is needed here is stored as these.
            b'U' | b'C' => {
                let [length] = self.take()?;
                self.raw(length.into())?
            }
            b'T' | b'B' => {
                let length = u32::from_le_bytes(self.take()?);
                self.raw(length.into())?
            }
            0x8e | 0x96 => {
                let length = u64::from_le_bytes(self.take()?);
                self.raw(length)?
            }
            _ => return Ok(false),
        };
        self.push(value);
        Ok(true)
    }

    /// Tuples, lists, sets and dicts.
    fn collection(&mut self, code: u8) -> Result<bool> {
        match code {
            b')' => self.push(Value::Tuple(Vec::new())),
            b']' | 0x8f => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            b't' => {
                let items = self.above_mark()?;
                self.push(Value::Tuple(items));
            }
            0x91 | b'l' => {
                let items = self.above_mark()?;
                self.push(Value::List(items));
            }
            0x85..=0x87 => {
                let from = self
                    .stack
                    .len()
                    .checked_sub(usize::from(code - 0x84))
                    .ok_or_else(|| pickle_error("too few values"))?;
                let items = self.stack.split_off(from);
                self.push(Value::Tuple(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.above_mark()?;
                self.extend(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(&[key, value])?;
            }
            b'u' => {
                let items = self.above_mark()?;
                self.insert(&items)?;
            }
            b'd' => {
                let items = self.above_mark()?;
                self.push(Value::Dict(Vec::new()));
                self.insert(&items)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The memo: values kept to be used again.
    fn memory(&mut self, code: u8) -> Result<bool> {
        match code {
            b'q' | b'r' | 0x94 => {
                let key = match code {
                    b'q' => u8::from_le_bytes(self.take()?).into(),
                    b'r' => u32::from_le_bytes(self.take()?).into(),
                    _ => self.memo.len() as u64,
                };
                let top = self.top()?;
                self.memo.insert(key, top);
            }
            b'h' | b'j' => {
                let key: u64 = if code == b'h' {
                    u8::from_le_bytes(self.take()?).into()
                } else {
                    u32::from_le_bytes(self.take()?).into()
                };
                let kept = self.memo.get(&key).ok_or_else(|| pickle_error(format!("the memo has no entry {key}")))?;
                self.stack.push(*kept);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What a loader would import, call or fetch.
    fn object(&mut self, code: u8) -> Result<()> {
        match code {
            b'c' => {
                let name = format!("{}.{}", self.line()?, self.line()?);
                self.push(Value::Name(name));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |id: ValueId| match &self.values[id] {
                    Value::Text(text) if text.len() <= NAME_LIMIT => Ok(text.clone()),
                    other => Err(pickle_error(format!(
                        "found {other} as a name; expected a text of at most {NAME_LIMIT} bytes"
                    ))),
                };
                let name = format!("{}.{}", text(module)?, text(name)?);
                self.push(Value::Name(name));
            }
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                // A dict under another name, filled by the opcodes that follow.
                let is_dict = matches!(&self.values[callee], Value::Name(name) if name == "collections.OrderedDict" || name == "collections.defaultdict");
                self.push(if is_dict {
                    Value::Dict(Vec::new())
                } else {
                    Value::Call { callee, arguments, state: None }
                });
            }
            b'b' => {
                let given = self.pop()?;
                let object = self.top()?;
                // Attributes of a dict, such as torch's version, are not needed.
                if let Value::Call { state, .. } = &mut self.values[object] {
                    *state = Some(given);
                }
            }
            b'Q' => {
                let key = self.pop()?;
                self.push(Value::Persistent(key));
            }
            other => return Err(pickle_error(format!("opcode {other:#04x}, which torch does not write"))),
        }
        Ok(())
    }

    /// Checks the limits before each opcode, which adds one entry at most.
    fn check_limits(&self) -> Result<()> {
        let counts = [self.values.len(), self.stack.len(), self.marks.len(), self.memo.len()];
        if counts.iter().all(|count| *count < VALUE_LIMIT) {
            return Ok(());
        }
        Err(pickle_error(format!("more than {VALUE_LIMIT} values; expected those of a state dict")))
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<ValueId> {
        self.stack.pop().ok_or_else(|| pickle_error("the stack is empty"))
    }

    fn top(&self) -> Result<ValueId> {
        self.stack.last().copied().ok_or_else(|| pickle_error("the stack is empty"))
    }

    /// The values above the last mark, which goes with them.
    fn above_mark(&mut self) -> Result<Vec<ValueId>> {
        let height = self.marks.pop().ok_or_else(|| pickle_error("there is no mark"))?;
        if height > self.stack.len() {
            return Err(pickle_error("the mark is above the stack"));
        }
        Ok(self.stack.split_off(height))
    }

    fn extend(&mut self, items: Vec<ValueId>) -> Result<()> {
        let top = self.top()?;
        match &mut self.values[top] {
            Value::List(list) => list.extend(items),
            // A list of another type, which only an import could tell.
            Value::Call { .. } => {}
            other => return Err(pickle_error(format!("items are added to {other}"))),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[ValueId]) -> Result<()> {
        let top = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(pickle_error("a key has no value"));
        }
        match &mut self.values[top] {
            Value::Dict(entries) => entries.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            Value::Call { .. } => {}
            other => return Err(pickle_error(format!("entries are added to {other}"))),
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.first_chunk::<N>().ok_or_else(|| pickle_error("the pickle ends too early"))?;
        self.at += N;
        Ok(*taken)
    }

    fn bytes(&mut self, length: u64) -> Result<&'a [u8]> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let taken = end
            .and_then(|end| self.bytes.get(self.at..end))
            .ok_or_else(|| pickle_error("the pickle ends too early"))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn utf8(&mut self, length: u64) -> Result<Value> {
        let text = std::str::from_utf8(self.bytes(length)?).map_err(|_| pickle_error("a text is not UTF-8"))?;
        Ok(Value::Text(text.to_owned()))
    }

    fn raw(&mut self, length: u64) -> Result<Value> {
        Ok(Value::Text(String::from_utf8_lossy(self.bytes(length)?).into_owned()))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or_else(|| pickle_error("a name does not end"))?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| pickle_error("a name is not UTF-8"))
    }
}

/// A little-endian two's complement integer of any number of bytes.
fn long(bytes: &[u8]) -> Result<i64> {
    if bytes.len() > 8 {
        return Err(pickle_error(format!("an integer of {} bytes; expected at most 8", bytes.len())));
    }
    let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
    let mut whole = [if negative { 0xff } else { 0 }; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    Ok(i64::from_le_bytes(whole))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn integers_have_any_length_and_sign() {
        for (bytes, number) in [(&[0xfe][..], -2), (&[0xfe, 0], 254), (&[], 0), (&[0, 0, 0, 0, 0, 1], 1 << 40)] {
            assert_eq!(long(bytes).unwrap(), number);
        }
        assert!(long(&[1; 9]).is_err());
    }
}
