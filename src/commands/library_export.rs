//! `library export`: exports experts as Hugging Face repositories.

use crate::args::usage;
use crate::command_context::CommandContext;
use crate::output::text_table::table;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use lorakit_adapter::{HubExport, Library};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The arguments of `library export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// Library
    #[arg(long, value_name = "L")]
    library: PathBuf,
    /// Output folder, with one repository folder per expert
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// License for the model cards, such as apache-2.0
    #[arg(long, value_name = "ID")]
    license: Option<String>,
    /// Export only these experts [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// The JSON document of `library export`.
#[derive(Serialize)]
struct ExportDocument<'a> {
    out: &'a Path,
    exported: &'a [Exported],
}

#[derive(Serialize)]
struct Exported {
    name: String,
    folder: PathBuf,
}

/// Writes all repositories, each atomically.
pub fn run(args: &ExportArgs, context: &CommandContext) -> Result<()> {
    let library = Library::open(&args.library)?;
    usage::ensure(!is_within(&args.out, library.root()), || {
        format!("{}: --out is inside the library {}", args.out.display(), args.library.display())
    })?;
    let names = if args.names.is_empty() { library.expert_names()? } else { args.names.clone() };
    ensure!(!names.is_empty(), "{}: the library has no experts", args.library.display());
    // Missing experts and existing folders are reported before anything is written.
    for name in &names {
        library.expert_folder(name)?;
        let place = args.out.join(name);
        let free = std::fs::read_dir(&place).map_or(!place.exists(), |mut entries| entries.next().is_none());
        ensure!(free, "{}: not empty; move it, or use another --out", place.display());
    }
    std::fs::create_dir_all(&args.out).with_context(|| format!("{}: cannot be created", args.out.display()))?;
    let mut exported = Vec::new();
    for name in names.iter().collect::<BTreeSet<_>>() {
        let folder = args.out.join(name);
        HubExport::new(&library, name)?.write(&folder, args.license.as_deref())?;
        exported.push(Exported { name: name.clone(), folder });
    }
    context.output.result(&ExportDocument { out: &args.out, exported: &exported }, || {
        table(["exported", "to"], exported.iter().map(|of| vec![of.name.clone(), of.folder.display().to_string()]))
    })
}

/// Whether a path, which need not exist, is `folder` or inside it.
fn is_within(place: &Path, folder: &Path) -> bool {
    let known = place.ancestors().find_map(|above| match above.as_os_str().is_empty() {
        true => Path::new(".").canonicalize().ok(),
        false => above.canonicalize().ok(),
    });
    matches!((known, folder.canonicalize()), (Some(known), Ok(folder)) if known.starts_with(&folder))
}
