//! All adapters of a command: those that are accepted so far, and those that are refused.

use crate::adding::named_folder::NamedFolder;
use crate::adding::new_expert::NewExpert;
use crate::adding::refusal::Refusal;
use anyhow::{Result, bail};

/// Adapters that were accepted so far, and those that were refused.
#[derive(Default)]
pub struct NewExperts {
    /// Accepted.
    pub accepted: Vec<NewExpert>,
    /// Refused.
    pub refused: Vec<Refusal>,
}

impl NewExperts {
    /// Leaves out what adapters change in an image encoder; refuses those that change nothing else.
    pub fn leave_out_image_encoders(&mut self) {
        self.retain(NewExpert::leave_out_image_encoder);
    }

    /// Reads all folders but those that are refused already.
    pub fn read(folders: Vec<Result<NamedFolder, Refusal>>, read: impl Fn(&NamedFolder) -> Result<NewExpert>) -> Self {
        let mut all = Self::default();
        for named in folders {
            let named = match named {
                Ok(named) => named,
                Err(refusal) => {
                    all.refused.push(refusal);
                    continue;
                }
            };
            match read(&named) {
                Ok(expert) => all.accepted.push(expert),
                Err(error) => all.refused.push(Refusal { name: named.name, folder: named.folder, error }),
            }
        }
        all
    }

    /// Refuses those that `check` finds an error in; it is called in order.
    pub fn retain(&mut self, mut check: impl FnMut(&mut NewExpert) -> Result<()>) {
        for mut expert in std::mem::take(&mut self.accepted) {
            match check(&mut expert) {
                Ok(()) => self.accepted.push(expert),
                Err(error) => {
                    let NewExpert { name, folder, .. } = expert;
                    self.refused.push(Refusal { name, folder, error });
                }
            }
        }
    }

    /// Fails if any was refused, with every reason, or under `skip` if all were.
    pub fn ensure_accepted(&mut self, skip: bool) -> Result<()> {
        if self.refused.is_empty() || (skip && !self.accepted.is_empty()) {
            return Ok(());
        }
        let (refused, all) = (self.refused.len(), self.refused.len() + self.accepted.len());
        if all == 1
            && let Some(Refusal { error, .. }) = self.refused.pop()
        {
            return Err(error);
        }
        let lines: Vec<String> = self.refused.iter().map(|refusal| format!("  {refusal}")).collect();
        let hint = if skip { "" } else { "; --skip-refused takes the others" };
        bail!("{refused} of {all} adapters were refused, and nothing was added{hint}:\n{}", lines.join("\n"))
    }
}
