//! A run of byte tokens.

/// The bytes of consecutive byte tokens, as text.
#[derive(Debug, Default)]
pub(crate) struct ByteRun {
    /// The complete characters.
    text: String,
    /// The bytes of an incomplete character after them.
    incomplete: Vec<u8>,
    /// Whether a byte was invalid: then all bytes decode to U+FFFD.
    invalid: bool,
    /// Bytes of `text` that are the prompt's.
    prompt: usize,
}

impl ByteRun {
    /// A run that begins with the last bytes of a prompt.
    pub fn of_prompt(bytes: impl Iterator<Item = u8>) -> Self {
        let mut run = Self::default();
        bytes.for_each(|byte| run.push(byte));
        // While a prompt's character is incomplete, all of the run's bytes are U+FFFD: none of its text is the prompt's.
        run.prompt = if run.incomplete.is_empty() { run.text.len() } else { 0 };
        run
    }

    /// Adds a byte.
    pub fn push(&mut self, byte: u8) {
        if self.invalid {
            return;
        }
        self.incomplete.push(byte);
        match std::str::from_utf8(&self.incomplete) {
            Ok(character) => {
                self.text.push_str(character);
                self.incomplete.clear();
            }
            Err(error) => self.invalid = error.error_len().is_some(),
        }
    }

    /// The text after the prompt's, if all bytes are whole characters.
    pub fn text(&self) -> Option<&str> {
        if self.invalid || !self.incomplete.is_empty() { None } else { self.text.get(self.prompt..) }
    }
}

/// The byte of a token such as `<0xE3>`.
pub(crate) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}
