//! The stack machine that pickles are programs for, run over an arena of values.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use crate::import::pickle_value::{Value, ValueId};

/// How many values there may be, and how many places on the stack, marks and kept places: a byte can make one. The state
/// dict of a large model makes some thousand.
const VALUE_LIMIT: usize = 1 << 20;

/// The longest name of a module, or of what is in it, that is put together: each time from texts that may be shared.
const NAME_LIMIT: usize = 128;

/// The values that a pickle makes, and the place of the one that it is of.
pub(crate) fn run(bytes: &[u8]) -> Result<(Vec<Value>, ValueId)> {
    let (values, stack, marks) = (Vec::new(), Vec::new(), Vec::new());
    let mut machine = Machine { bytes, at: 0, values, stack, marks, memo: HashMap::new() };
    let root = machine.run().with_context(|| format!("byte {} of the pickle", machine.at))?;
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
            self.ensure_bounded()?;
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
            // Bytes, and texts of Python 2. Nothing that is looked for here is kept as such.
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
                let from = self.stack.len().checked_sub(usize::from(code - 0x84)).context("too few values")?;
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

    /// What is kept to be used again.
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
                let kept = *self.memo.get(&key).with_context(|| format!("nothing was kept under {key}"))?;
                self.stack.push(kept);
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
                let text = |place: ValueId| match &self.values[place] {
                    Value::Text(text) if text.len() <= NAME_LIMIT => Ok(text.clone()),
                    other => bail!("{other} was to name something; expected a text of at most {NAME_LIMIT} bytes"),
                };
                let name = format!("{}.{}", text(module)?, text(name)?);
                self.push(Value::Name(name));
            }
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                // A dict under another name, filled by what follows.
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
                // What is set on a dict beside its entries, as torch does with a version, tells nothing here.
                if let Value::Call { state, .. } = &mut self.values[object] {
                    *state = Some(given);
                }
            }
            b'Q' => {
                let key = self.pop()?;
                self.push(Value::Persistent(key));
            }
            other => bail!("the code {other:#04x} is none that torch writes"),
        }
        Ok(())
    }

    /// Looked at before each code, which makes one more at most.
    fn ensure_bounded(&self) -> Result<()> {
        let counts = [self.values.len(), self.stack.len(), self.marks.len(), self.memo.len()];
        ensure!(
            counts.iter().all(|count| *count < VALUE_LIMIT),
            "more than {VALUE_LIMIT} values; expected those of a state dict"
        );
        Ok(())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<ValueId> {
        self.stack.pop().context("the stack is empty")
    }

    fn top(&self) -> Result<ValueId> {
        self.stack.last().copied().context("the stack is empty")
    }

    /// The values above the last mark, which goes with them.
    fn above_mark(&mut self) -> Result<Vec<ValueId>> {
        let height = self.marks.pop().context("there is no mark")?;
        ensure!(height <= self.stack.len(), "the mark is above the stack");
        Ok(self.stack.split_off(height))
    }

    fn extend(&mut self, items: Vec<ValueId>) -> Result<()> {
        let top = self.top()?;
        match &mut self.values[top] {
            Value::List(list) => list.extend(items),
            // A list of another kind, which only an import could know.
            Value::Call { .. } => {}
            other => bail!("items were to be added to {other}"),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[ValueId]) -> Result<()> {
        let top = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        ensure!(rest.is_empty(), "a key has no value");
        match &mut self.values[top] {
            Value::Dict(entries) => entries.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            Value::Call { .. } => {}
            other => bail!("entries were to be added to {other}"),
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.first_chunk::<N>().context("the pickle ends too early")?;
        self.at += N;
        Ok(*taken)
    }

    fn bytes(&mut self, length: u64) -> Result<&'a [u8]> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let taken = end.and_then(|end| self.bytes.get(self.at..end)).context("the pickle ends too early")?;
        self.at += taken.len();
        Ok(taken)
    }

    fn utf8(&mut self, length: u64) -> Result<Value> {
        Ok(Value::Text(std::str::from_utf8(self.bytes(length)?).context("a text is not UTF-8")?.to_owned()))
    }

    fn raw(&mut self, length: u64) -> Result<Value> {
        Ok(Value::Text(String::from_utf8_lossy(self.bytes(length)?).into_owned()))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == b'\n').context("a name does not end")?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).context("a name is not UTF-8")
    }
}

/// A whole number of some bytes, the least first, in two's complement.
fn long(bytes: &[u8]) -> Result<i64> {
    ensure!(bytes.len() <= 8, "a whole number of {} bytes; expected at most 8", bytes.len());
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
    fn whole_numbers_are_of_any_length_and_sign() {
        for (bytes, number) in [(&[0xfe][..], -2), (&[0xfe, 0], 254), (&[], 0), (&[0, 0, 0, 0, 0, 1], 1 << 40)] {
            assert_eq!(long(bytes).unwrap(), number);
        }
        assert!(long(&[1; 9]).is_err());
    }
}
