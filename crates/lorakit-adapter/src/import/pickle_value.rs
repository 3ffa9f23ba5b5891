//! The values that a pickle makes.

use std::fmt;

/// The index of a value in its pickle.
pub(crate) type ValueId = usize;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// A list or a set.
    List(Vec<ValueId>),
    Tuple(Vec<ValueId>),
    Dict(Vec<(ValueId, ValueId)>),
    /// `module.name`, which a loader would import.
    Name(String),
    /// What a loader would call, its arguments, and the state that it would set on the result.
    Call {
        callee: ValueId,
        arguments: ValueId,
        state: Option<ValueId>,
    },
    /// A value outside of the pickle, such as a tensor's storage.
    Persistent(ValueId),
}

/// What kind of value it is, for a message: never its content, which may be a million values or as many bytes.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Bool(truth) => write!(f, "{truth}"),
            Self::Int(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "a text of {} bytes", text.len()),
            Self::List(items) => write!(f, "a list of {}", items.len()),
            Self::Tuple(items) => write!(f, "a tuple of {}", items.len()),
            Self::Dict(entries) => write!(f, "a dict of {}", entries.len()),
            Self::Name(_) => f.write_str("a name"),
            Self::Call { .. } => f.write_str("a call"),
            Self::Persistent(_) => f.write_str("a storage"),
        }
    }
}
