//! Pointers of Git LFS, which stand in for large files where a repository was cloned without them.

use std::path::Path;

use crate::error::FormatError;

/// What a pointer begins with (<https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md>).
const BEGINNING: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Refuses the content of a file that is a pointer.
///
/// # Errors
/// If it is one.
pub fn refuse_lfs_pointer(path: &Path, content: &[u8]) -> Result<(), FormatError> {
    match content.starts_with(BEGINNING) {
        true => Err(FormatError::LfsPointer { path: path.to_owned() }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_told_from_a_file() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
        let message = refuse_lfs_pointer(Path::new("model.safetensors"), pointer).map_err(|error| error.to_string());
        assert!(message.is_err_and(|text| text.contains("model.safetensors") && text.contains("git lfs pull")));
        assert!(
            refuse_lfs_pointer(Path::new("x"), b"version 2").is_ok() && refuse_lfs_pointer(Path::new("x"), b"").is_ok()
        );
    }
}
