//! Pickles read as data: nothing in them is looked up, called or built.
//!
//! A pickle is a program for a stack machine (<https://docs.python.org/3/library/pickletools.html>). This one runs it
//! over an arena: what would be an import becomes a name, what would be a call becomes a note of who was to be called
//! with what. Values refer to each other by their places, so that shared, nested or circular ones cost no more than
//! the bytes that made them.

use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;

/// The place of a value in its [`Pickle`].
pub(crate) type Place = usize;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// A list or a set.
    List(Vec<Place>),
    Tuple(Vec<Place>),
    Dict(Vec<(Place, Place)>),
    /// `module.name`, which a loader would import.
    Name(String),
    /// What a loader would call, with what, and the state that it would set on the result.
    Call {
        callee: Place,
        arguments: Place,
        state: Option<Place>,
    },
    /// What is kept outside of the pickle, as a tensor's storage.
    Persistent(Place),
}

/// A pickle that was read.
#[derive(Debug)]
pub(crate) struct Pickle {
    values: Vec<Value>,
    root: Place,
}

impl Pickle {
    /// Reads a pickle of the protocols 2 to 5.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        let mut machine =
            Machine { bytes, at: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        let root = machine.run().with_context(|| format!("byte {} of the pickle", machine.at))?;
        Ok(Self { values: machine.values, root })
    }

    /// The value that the pickle is of.
    pub(crate) fn root(&self) -> Place {
        self.root
    }

    /// The value at a place.
    pub(crate) fn value(&self, place: Place) -> &Value {
        &self.values[place]
    }

    /// The text at a place, if it is one.
    pub(crate) fn text(&self, place: Place) -> Option<&str> {
        match self.value(place) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number at a place, if it is one.
    pub(crate) fn number(&self, place: Place) -> Option<f64> {
        match self.value(place) {
            Value::Int(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// The entries of a dict, or of the state of an object.
    pub(crate) fn entries(&self, place: Place) -> &[(Place, Place)] {
        match self.value(place) {
            Value::Dict(entries) => entries,
            // A state is a value like any other and may be circular: one step is enough for objects.
            Value::Call { state: Some(state), .. } => match self.value(*state) {
                Value::Dict(entries) => entries,
                _ => &[],
            },
            _ => &[],
        }
    }

    /// What a dict, or an object's state, has for a key; the last where there are several, as in Python.
    pub(crate) fn get(&self, place: Place, key: &str) -> Option<Place> {
        let mut entries = self.entries(place).iter().rev();
        entries.find(|(name, _)| self.text(*name) == Some(key)).map(|(_, value)| *value)
    }

    /// The items of a tuple.
    pub(crate) fn tuple(&self, place: Place) -> Option<&[Place]> {
        match self.value(place) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Place>,
    /// Heights of the stack at the marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Place>,
}

impl<'a> Machine<'a> {
    /// Runs to the end of the program.
    fn run(&mut self) -> Result<Place> {
        loop {
            let [code] = self.take()?;
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
                let text = |place: Place| match &self.values[place] {
                    Value::Text(text) => Ok(text.clone()),
                    other => bail!("{other:?} was to name something; expected a text"),
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

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Place> {
        self.stack.pop().context("the stack is empty")
    }

    fn top(&self) -> Result<Place> {
        self.stack.last().copied().context("the stack is empty")
    }

    /// The values above the last mark, which goes with them.
    fn above_mark(&mut self) -> Result<Vec<Place>> {
        let height = self.marks.pop().context("there is no mark")?;
        ensure!(height <= self.stack.len(), "the mark is above the stack");
        Ok(self.stack.split_off(height))
    }

    fn extend(&mut self, items: Vec<Place>) -> Result<()> {
        let top = self.top()?;
        match &mut self.values[top] {
            Value::List(list) => list.extend(items),
            // A list of another kind, which only an import could know.
            Value::Call { .. } => {}
            other => bail!("items were to be added to {other:?}"),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Place]) -> Result<()> {
        let top = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        ensure!(rest.is_empty(), "a key has no value");
        match &mut self.values[top] {
            Value::Dict(entries) => entries.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            Value::Call { .. } => {}
            other => bail!("entries were to be added to {other:?}"),
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
    fn what_python_writes_is_read() {
        // pickle.dumps({"a": [1, -2, 2.5, None], "b": (True, "x")}, 2), without its memo.
        let pickle = Pickle::read(
            b"\x80\x02}(X\x01\0\0\0a](K\x01J\xfe\xff\xff\xffG@\x04\0\0\0\0\0\0NeX\x01\0\0\0b\x88X\x01\0\0\0x\x86u.",
        )
        .unwrap();
        let root = pickle.root();
        let Value::List(items) = pickle.value(pickle.get(root, "a").unwrap()) else { panic!() };
        assert_eq!(
            items.iter().map(|item| pickle.number(*item)).collect::<Vec<_>>(),
            [Some(1.0), Some(-2.0), Some(2.5), None]
        );
        let pair = pickle.tuple(pickle.get(root, "b").unwrap()).unwrap();
        assert_eq!((pickle.value(pair[0]), pickle.text(pair[1])), (&Value::Bool(true), Some("x")));
        assert_eq!(long(&[0xfe]).unwrap(), -2);
        assert_eq!(long(&[0xfe, 0]).unwrap(), 254);
    }

    #[test]
    fn what_would_run_is_only_noted() {
        // os.system("echo"), as a hostile pickle has it.
        let pickle = Pickle::read(b"\x80\x02cos\nsystem\nX\x04\0\0\0echo\x85R.").unwrap();
        let Value::Call { callee, arguments, .. } = pickle.value(pickle.root()) else { panic!() };
        assert_eq!(pickle.value(*callee), &Value::Name("os.system".to_owned()));
        assert_eq!(pickle.text(pickle.tuple(*arguments).unwrap()[0]), Some("echo"));
    }

    #[test]
    fn damage_and_malice_end_in_errors_not_in_memory() {
        for bytes in [
            &b""[..],
            b"\x80\x02",
            b".",
            b"h\x05.",
            b"t.",
            b"X\xff\xff\xff\xffabc.",
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.",
            b"cno newline",
            b"K\x01K\x02s.",
            b"}K\x01s.",
            b"(0.",
            b"\x8a\x09123456789.",
            b"\x01.",
        ] {
            assert!(Pickle::read(bytes).is_err(), "{bytes:?}");
        }
        // Every step doubles what a loader that copies would hold: 2^100 of them.
        let mut doubling = b"\x80\x02)q\0".to_vec();
        (0..100).for_each(|_| doubling.extend(b"h\0h\0\x86q\0"));
        doubling.push(b'.');
        assert_eq!(Pickle::read(&doubling).unwrap().values.len(), 101);
        // So deeply nested that a recursive reader would end the process.
        let mut deep = vec![b']'; 1];
        deep.extend(std::iter::repeat_n(0x85, 1 << 20));
        deep.push(b'.');
        assert!(Pickle::read(&deep).is_ok());
    }
}
