//! `library import`: adapters that other programs wrote, read as data and nothing else.

use super::library_add::{Candidate, Named, add_all};
use crate::base::base_source::BaseSource;
use crate::context::Context;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use lorakit_adapter::{Adapter, CONFIG_FILE, ExpertRecord, MttlExpert, WEIGHTS_FILE, mttl_experts};
use lorakit_fit::record_beside;
use lorakit_format::hash::sha256;
use serde_json::json;
use std::path::{Path, PathBuf};

/// The arguments of `library import`.
#[derive(Args, Debug)]
pub struct ImportArgs {
    /// The library; made where there is none
    #[arg(long, value_name = "L")]
    library: PathBuf,
    /// The base that the experts belong to; it is then recorded, and every adapter checked against it
    #[arg(long, value_name = "B")]
    base: Option<BaseSource>,
    /// PEFT folders, named as by library add, and folders of mttl libraries, whose experts keep their names
    #[arg(required = true, value_name = "[NAME=]DIR")]
    folders: Vec<Named>,
}

/// Imports all, or nothing where one cannot be.
pub fn run(args: &ImportArgs, context: &Context) -> Result<()> {
    let mut candidates = Vec::new();
    for named in &args.folders {
        candidates.extend(read(named, context)?);
    }
    ensure!(!candidates.is_empty(), "every expert of these libraries is marked as deleted; nothing was imported");
    add_all(&args.library, args.base.as_ref(), &candidates, context)
}

/// The experts of one folder.
fn read(named: &Named, context: &Context) -> Result<Vec<Candidate>> {
    let folder = &named.folder;
    if folder.join(CONFIG_FILE).is_file() {
        // Safetensors go first, as in PEFT.
        let safe = folder.join(WEIGHTS_FILE).is_file();
        let adapter = if safe { Adapter::read(folder)? } else { Adapter::import(folder)? };
        let record = if safe { record_beside(folder)? } else { None };
        return Ok(vec![Candidate { name: named.name.clone(), folder: folder.clone(), adapter, record }]);
    }
    let place = folder.display();
    ensure!(folder.is_dir(), "{place}: no folder; expected a PEFT folder, or that of an mttl library");
    let names = mttl_experts(folder)?;
    match names.len() {
        0 => bail!(
            "{place}: neither a PEFT folder, for it has no {CONFIG_FILE}, nor an mttl library, for it has no NAME.ckpt"
        ),
        1 => {}
        many => ensure!(!named.given, "{place}: {many} experts, which one name cannot name; leave out NAME="),
    }
    let mut candidates = Vec::new();
    for name in names {
        let MttlExpert { adapter, tasks, deleted } = MttlExpert::read(folder, &name)?;
        if deleted {
            context.output.warn(format!("{place}: `{name}` is marked as deleted there, and left out"));
            continue;
        }
        let record = record(&name, &tasks, folder).with_context(|| format!("{place}: `{name}`"))?;
        let name = if named.given { named.name.clone() } else { name };
        candidates.push(Candidate { name, folder: folder.clone(), adapter, record: Some(record) });
    }
    Ok(candidates)
}

/// What is known of an mttl expert. Its tasks are names alone, without the rows, so they are kept as settings and not
/// as tasks whose splits could be compared.
fn record(name: &str, tasks: &[String], folder: &Path) -> Result<ExpertRecord> {
    let source = folder.canonicalize()?;
    let source = source.file_name().map(|name| name.to_string_lossy().into_owned());
    let settings = json!({ "imported": { "format": "mttl", "library": source, "expert": name, "tasks": tasks } });
    Ok(ExpertRecord {
        settings_sha256: sha256(settings.to_string().as_bytes()),
        settings,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..ExpertRecord::default()
    })
}
