//! `library import`: imports adapters of other programs. Files are parsed as data; nothing in them is executed.

use crate::adding::named_folder::NamedFolder;
use crate::adding::new_expert::{NewExpert, OpenBase};
use crate::adding::new_experts::NewExperts;
use crate::adding::refusal::Refusal;
use crate::base::base_source::BaseSource;
use crate::command_context::CommandContext;
use crate::commands::library_add::{AddTarget, add_all};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use lorakit_adapter::{Adapter, CONFIG_FILE, ExpertRecord, MttlExpert, OpaqueRecord, mttl_experts};
use lorakit_fit::record_beside;
use serde_json::json;
use std::path::{Path, PathBuf};

/// The arguments of `library import`.
#[derive(Args, Debug)]
pub struct ImportArgs {
    /// Library; created if it does not exist
    #[arg(long, value_name = "L")]
    library: PathBuf,
    /// Base model of the adapters; it is recorded, and every adapter is checked against it
    #[arg(long, value_name = "B")]
    base: Option<BaseSource>,
    /// Import the other folders where some are refused, instead of none
    #[arg(long)]
    skip_refused: bool,
    /// Leave out what adapters of a multimodal base change in its image encoder, instead of refusing them: text
    /// behavior is unchanged; the image encoder is left as in the base
    #[arg(long)]
    skip_image_encoder: bool,
    /// PEFT folders, named as in library add, and mttl libraries, whose experts keep their names
    #[arg(required = true, value_name = "[NAME=]DIR")]
    folders: Vec<NamedFolder>,
}

/// Imports all experts, or none if one is refused, unless these are to be skipped.
pub fn run(args: &ImportArgs, context: &CommandContext) -> Result<()> {
    let mut experts = NewExperts::default();
    for named in &args.folders {
        if let Err(error) = read(named, &mut experts, context) {
            experts.refused.push(Refusal { name: named.name.clone(), folder: named.folder.clone(), error });
        }
    }
    let found = experts.accepted.len() + experts.refused.len();
    ensure!(found > 0, "all experts of these libraries are marked as deleted; nothing was imported");
    if args.skip_image_encoder {
        experts.leave_out_image_encoders();
    }
    let base = args.base.as_ref().map(|base| OpenBase::open(base, context)).transpose()?;
    add_all(AddTarget { root: &args.library, base: base.as_ref() }, experts, args.skip_refused, context)
}

/// Reads the experts of one folder. Those of an mttl library are accepted or refused each by itself.
fn read(named: &NamedFolder, experts: &mut NewExperts, context: &CommandContext) -> Result<()> {
    let folder = &named.folder;
    if folder.join(CONFIG_FILE).is_file() {
        let (adapter, record) = (Adapter::read(folder)?, record_beside(folder)?);
        let (name, folder) = (named.name.clone(), folder.clone());
        experts.accepted.push(NewExpert { name, folder, adapter, record, conversion: None });
        return Ok(());
    }
    let place = folder.display();
    ensure!(folder.is_dir(), "{place}: not a folder; expected a PEFT folder or an mttl library");
    let names = mttl_experts(folder)?;
    match names.len() {
        0 => bail!("{place}: neither a PEFT folder (no {CONFIG_FILE}) nor an mttl library (no NAME.ckpt)"),
        1 => {}
        many => ensure!(!named.given, "{place}: has {many} experts; omit NAME="),
    }
    for own in names {
        let name = if named.given { named.name.clone() } else { own.clone() };
        match read_mttl(folder, &own) {
            Ok(Some((adapter, record))) => {
                let (folder, record) = (folder.clone(), Some(record));
                experts.accepted.push(NewExpert { name, folder, adapter, record, conversion: None });
            }
            Ok(None) => context.output.warn(format!("{place}: `{own}` is marked as deleted and skipped")),
            Err(error) => experts.refused.push(Refusal { name, folder: folder.clone(), error }),
        }
    }
    Ok(())
}

/// The expert `name` of an mttl library; None if it is marked as deleted.
fn read_mttl(folder: &Path, name: &str) -> Result<Option<(Adapter, ExpertRecord)>> {
    let MttlExpert { adapter, tasks, deleted } = MttlExpert::read(folder, name)?;
    if deleted {
        return Ok(None);
    }
    let record = record(name, &tasks, folder).with_context(|| format!("{}: `{name}`", folder.display()))?;
    Ok(Some((adapter, record)))
}

/// The record of an mttl expert. Its tasks are names without rows, so they are recorded as settings, not as tasks whose
/// splits can be compared.
fn record(name: &str, tasks: &[String], folder: &Path) -> Result<ExpertRecord> {
    let source = folder.canonicalize()?;
    let source = source.file_name().map(|name| name.to_string_lossy().into_owned());
    let settings = OpaqueRecord::new(
        &json!({ "imported": { "format": "mttl", "library": source, "expert": name, "tasks": tasks } }),
    )?;
    Ok(ExpertRecord {
        settings_sha256: settings.sha256(),
        settings,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..ExpertRecord::default()
    })
}
