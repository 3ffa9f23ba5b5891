//! The replacement of a result's samples, so that they are never beside the scores of another run.

use anyhow::{Context as _, Result};
use lorakit_format::atomic::{REPLACED, TEMPORARY, hidden_path, write_file};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Replaces results and their samples. If either cannot be written, both stay as they were; a killed process leaves no
/// samples beside the scores of another run: at worst there are none.
pub fn replace_with_samples(
    path: &Path,
    samples: Option<&str>,
    write_results: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let (new, old) = (hidden_path(path, TEMPORARY)?, hidden_path(path, REPLACED)?);
    // What a killed process left under these names counts for nothing.
    remove_if_exists(&new)?;
    remove_if_exists(&old)?;
    if let Some(samples) = samples {
        write_file(&new, samples.as_bytes())?;
    }
    let had_samples = move_if_exists(path, &old)?;
    if let Err(error) = write_results() {
        // The first error is the one to report.
        let _ = if had_samples { fs::rename(&old, path) } else { Ok(()) };
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    if samples.is_some() {
        fs::rename(&new, path).with_context(|| format!("{}: cannot be written", path.display()))?;
    }
    if had_samples {
        fs::remove_file(&old).with_context(|| format!("{}: cannot be removed", old.display()))?;
    }
    Ok(())
}

fn remove_if_exists(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: cannot be removed", path.display()))
        }
        _ => Ok(()),
    }
}

/// Renames a file; false where there is none.
fn move_if_exists(from: &Path, to: &Path) -> Result<bool> {
    match fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("{}: cannot be moved", from.display())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use anyhow::ensure;

    #[test]
    fn samples_are_of_the_scores_beside_them_at_every_moment() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        fs::write(&path, "old").unwrap();
        let replaced = |samples: Option<&str>, written: bool| {
            replace_with_samples(&path, samples, || {
                assert!(!path.exists(), "a process that is killed here leaves them beside other scores");
                ensure!(written, "the disk is full");
                Ok(())
            })
        };
        let names = || fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        for samples in [Some("new"), None] {
            assert!(replaced(samples, false).is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), "old", "the old scores stay too");
            assert_eq!(names(), ["samples.jsonl"]);
        }
        replaced(Some("new"), true).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(names(), ["samples.jsonl"]);
        replaced(None, true).unwrap();
        assert!(names().is_empty());
        for left in [".new-samples.jsonl", ".old-samples.jsonl"] {
            fs::write(folder.path().join(left), "of a killed process").unwrap();
        }
        replaced(None, true).unwrap();
        assert!(names().is_empty());
    }

    #[test]
    fn results_stay_where_their_samples_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        fs::write(&path, "old").unwrap();
        // Nothing can be moved to the name of a folder.
        fs::create_dir(folder.path().join(".new-samples.jsonl")).unwrap();
        let written = replace_with_samples(&path, Some("new"), || panic!("the results are not replaced"));
        assert!(written.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }
}
