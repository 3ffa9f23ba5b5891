//! Pickles read as data: nothing in them is looked up, called or built.
//!
//! A pickle is a program for a stack machine (<https://docs.python.org/3/library/pickletools.html>). This one runs it
//! over an arena: an import becomes a name, and a call becomes a record of the callee and its arguments. Values refer to
//! each other by id, so that shared, nested or circular ones exist once. A byte of input can make a value of several dozen
//! bytes, so their number has a limit.

use crate::error::Result;
use crate::import::pickle_machine;
use crate::import::pickle_value::{Value, ValueId};

/// The values of a pickle.
#[derive(Debug)]
pub(crate) struct Pickle {
    values: Vec<Value>,
    root: ValueId,
}

impl Pickle {
    /// Reads a pickle of the protocols 2 to 5.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        let (values, root) = pickle_machine::run(bytes)?;
        Ok(Self { values, root })
    }

    /// The pickled value.
    pub(crate) fn root(&self) -> ValueId {
        self.root
    }

    /// The value with this id.
    pub(crate) fn value(&self, id: ValueId) -> &Value {
        &self.values[id]
    }

    /// The text with this id, if it is one.
    pub(crate) fn text(&self, id: ValueId) -> Option<&str> {
        match self.value(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number with this id, if it is one.
    pub(crate) fn number(&self, id: ValueId) -> Option<f64> {
        match self.value(id) {
            Value::Int(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// The entries of a dict, or of the state of an object.
    pub(crate) fn entries(&self, id: ValueId) -> &[(ValueId, ValueId)] {
        match self.value(id) {
            Value::Dict(entries) => entries,
            // A state may be circular like any value: one step is enough for objects.
            Value::Call { state: Some(state), .. } => match self.value(*state) {
                Value::Dict(entries) => entries,
                _ => &[],
            },
            _ => &[],
        }
    }

    /// The value of a key in a dict or an object's state; the last of several, as in Python.
    pub(crate) fn get(&self, id: ValueId, key: &str) -> Option<ValueId> {
        let mut entries = self.entries(id).iter().rev();
        entries.find(|(name, _)| self.text(*name) == Some(key)).map(|(_, value)| *value)
    }

    /// The items of a tuple.
    pub(crate) fn tuple(&self, id: ValueId) -> Option<&[ValueId]> {
        match self.value(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn pickles_written_by_python_are_read() {
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
    }

    #[test]
    fn calls_are_recorded_and_not_run() {
        // os.system("echo"), as in a malicious pickle.
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
        deep.extend(std::iter::repeat_n(0x85, 1 << 19));
        deep.push(b'.');
        assert!(Pickle::read(&deep).is_ok());
    }

    #[test]
    fn a_byte_that_makes_much_more_than_a_byte_has_a_bound() {
        // Values, copies on the stack, marks and memo entries: each made by one byte.
        for code in [b'N', b'2', b'(', 0x94] {
            let mut many = b"\x80\x02N".to_vec();
            many.extend(std::iter::repeat_n(code, 2 << 20));
            let error = Pickle::read(&many).unwrap_err().chain();
            assert!(error.contains("more than 1048576"), "{error}");
        }
        // A name is a new text of two that may be shared by many.
        let mut long = b"\x80\x02X\0\x01\0\0".to_vec();
        long.extend([b'm'; 256]);
        long.extend(b"q\0h\0\x93.");
        let error = Pickle::read(&long).unwrap_err().chain();
        assert!(error.contains("a text of 256 bytes"), "{error}");
    }

    #[test]
    fn a_message_does_not_repeat_what_a_value_holds() {
        let mut list = b"\x80\x02](".to_vec();
        list.extend([b'N'; 1000]);
        // A list as a dict.
        list.extend(b"eNNs.");
        let error = Pickle::read(&list).unwrap_err().chain();
        assert!(error.contains("a list of 1000") && error.len() < 200, "{error}");
    }
}
