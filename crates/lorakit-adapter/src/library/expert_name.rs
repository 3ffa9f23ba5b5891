//! The names that experts, models and routers may have.

use crate::error::{AdapterError, Result};

/// The longest name of an expert, in bytes: file systems allow 255, and temporary names add a prefix.
const NAME_LIMIT: usize = 200;

/// Checks that `name` can name an expert: it is a folder name on Linux and macOS, and not a hidden one. (Windows
/// takes fewer: libraries may hold others.)
///
/// # Errors
/// If it is empty, too long, starts with a dot, or holds a separator, a comma (which separates names on the command line)
/// or a control character.
pub fn ensure_expert_name(name: &str) -> Result<()> {
    let quoted: String = name.chars().take(60).flat_map(char::escape_debug).collect();
    let forbidden = name.chars().find(|found| matches!(found, '/' | '\\' | ',') || found.is_control());
    let problem = if name.is_empty() {
        "an expert's name is empty; expected a folder name".to_owned()
    } else if name.len() > NAME_LIMIT {
        format!("the expert's name `{quoted}`... has {} bytes; expected at most {NAME_LIMIT}", name.len())
    } else if name.starts_with('.') {
        format!("the expert's name `{quoted}` starts with a dot; expected a name that is not hidden")
    } else if let Some(found) = forbidden {
        format!("the expert's name `{quoted}` contains {found:?}; expected a folder name without separators")
    } else {
        return Ok(());
    };
    Err(AdapterError::ExpertName(problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_folders_are_accepted_and_ways_out_of_the_library_refused() {
        for name in ["boolq", "cluster 3", "wiki_hop-2.0", "flan.v2..x", "ünï", "a=b"] {
            assert!(ensure_expert_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "../x", "/etc", "a/b", "a\\b", ".hidden", "a,b", "a\0b", "a\nb", &"x".repeat(201)] {
            assert!(ensure_expert_name(name).is_err(), "{name:?}");
        }
    }
}
