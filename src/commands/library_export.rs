//! `library export`: exports experts as Hugging Face repositories, or as GGUF adapters for llama.cpp.

use crate::args::usage;
use crate::base::base_source::BaseSource;
use crate::base::merged_base;
use crate::base::resolved_base::ResolvedBase;
use crate::command_context::CommandContext;
use crate::output::console::make_folder;
use crate::output::text_table::table;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use lorakit_adapter::{Adapter, BaseIdentity, GgufExport, HubExport, Library};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The arguments of `library export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// Library
    #[arg(long, value_name = "L")]
    library: PathBuf,
    /// Output folder, with one repository folder or GGUF file per expert
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A Hugging Face repository, or a GGUF adapter for llama.cpp and Ollama
    #[arg(long, value_enum, default_value_t = ExportFormat::Hub)]
    format: ExportFormat,
    /// For GGUF: the experts' base, whose architecture names the tensors [default: as the library records it]
    #[arg(long, value_name = "B")]
    base: Option<BaseSource>,
    /// License for the model cards, such as apache-2.0
    #[arg(long, value_name = "ID")]
    license: Option<String>,
    /// Export only these experts [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    experts: Vec<String>,
    /// The same as --experts
    #[arg(value_name = "NAME", conflicts_with = "experts")]
    names: Vec<String>,
}

/// What experts are exported as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ExportFormat {
    Hub,
    Gguf,
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
    /// The repository's folder, for the Hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    folder: Option<PathBuf>,
    /// The adapter's file, for llama.cpp.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
}

impl Exported {
    fn place(&self) -> String {
        self.folder.as_ref().or(self.file.as_ref()).map_or_else(String::new, |place| place.display().to_string())
    }
}

/// Writes all repositories or files, each atomically.
pub fn run(args: &ExportArgs, context: &CommandContext) -> Result<()> {
    usage::ensure(args.format == ExportFormat::Gguf || args.base.is_none(), || {
        "--base is for --format gguf".to_owned()
    })?;
    usage::ensure(args.format == ExportFormat::Hub || args.license.is_none(), || {
        "--license is for the model cards of --format hub".to_owned()
    })?;
    let library = Library::open(&args.library)?;
    usage::ensure(!is_within(&args.out, library.root()), || {
        format!("{}: --out is inside the library {}", args.out.display(), args.library.display())
    })?;
    let asked = if args.experts.is_empty() { &args.names } else { &args.experts };
    let names = if asked.is_empty() { library.expert_names()? } else { asked.clone() };
    ensure!(!names.is_empty(), "{}: the library has no experts", args.library.display());
    // Missing experts and existing folders are reported before anything is written.
    for name in &names {
        library.expert_folder(name)?;
        let place = args.place(name);
        let free = std::fs::read_dir(&place).map_or(!place.exists(), |mut entries| entries.next().is_none());
        ensure!(free, "{}: not empty; move it, or use another --out", place.display());
    }
    let base = args.gguf_base(&library, context)?;
    make_folder(&args.out)?;
    let mut exported = Vec::new();
    for name in names.iter().collect::<BTreeSet<_>>() {
        let place = args.place(name);
        let (folder, file) = match &base {
            None => {
                let export = HubExport::new(&library, name)?;
                let export = match &context.base_name {
                    Some(base) => export.renamed_base(base),
                    None => export,
                };
                export.write(&place, args.license.as_deref())?;
                (Some(place), None)
            }
            Some(base) => {
                let export = || -> Result<()> {
                    let adapter = library.adapter(name)?;
                    base.ensure_takes(&adapter)?;
                    Ok(GgufExport::new(name, &adapter, &base.identity)?.write(&place)?)
                };
                export().with_context(|| format!("expert `{name}`"))?;
                (None, Some(place))
            }
        };
        exported.push(Exported { name: name.clone(), folder, file });
    }
    context.output.result(&ExportDocument { out: &args.out, exported: &exported }, || {
        table(["exported", "to"], exported.iter().map(|expert| vec![expert.name.clone(), expert.place()]))
    })
}

impl ExportArgs {
    /// Where an expert is exported to.
    fn place(&self, name: &str) -> PathBuf {
        match self.format {
            ExportFormat::Hub => self.out.join(name),
            ExportFormat::Gguf => self.out.join(format!("{name}.gguf")),
        }
    }

    /// The base that GGUF adapters are for; none for the Hub.
    fn gguf_base(&self, library: &Library, context: &CommandContext) -> Result<Option<GgufBase>> {
        let of_library = || format!("the library {}", self.library.display());
        match (self.format, &self.base) {
            (ExportFormat::Hub, _) => Ok(None),
            (ExportFormat::Gguf, Some(base)) => {
                let resolved = base.resolve(context)?;
                let identity = resolved.base(context)?.identity().clone();
                if let Some(own) = library.base() {
                    own.ensure_same(&identity).with_context(of_library)?;
                }
                Ok(Some(GgufBase { identity, resolved: Some(resolved) }))
            }
            (ExportFormat::Gguf, None) => {
                let own = library.base().cloned();
                let identity = own.with_context(|| format!("{} records no base; give --base", of_library()))?;
                Ok(Some(GgufBase { identity, resolved: None }))
            }
        }
    }
}

/// The base that GGUF adapters are for.
struct GgufBase {
    identity: BaseIdentity,
    /// Where it is, if it was given.
    resolved: Option<ResolvedBase>,
}

impl GgufBase {
    /// Refuses an adapter of a head or an embedding that are one weight.
    fn ensure_takes(&self, adapter: &Adapter) -> Result<()> {
        match &self.resolved {
            Some(resolved) => match merged_base::tied_module(&resolved.config()?, adapter) {
                // A file may hold a tied head all the same.
                Some(_) if resolved.has_own_head()? => Ok(()),
                Some(module) => bail!(
                    "the base's head is tied to its embedding (tie_word_embeddings), and llama.cpp has no tensor for a \
                     change of `{module}` alone. Such an expert can be served or merged into the base, but not exported as \
                     GGUF; leave it out (--experts)"
                ),
                None => Ok(()),
            },
            None => {
                let is_outside =
                    |module: &&String| *module == "lm_head" || adapter.metadata().embeddings.contains(module.as_str());
                match adapter.modules().keys().find(is_outside) {
                    Some(module) => bail!("it adapts `{module}`; give --base, which says whether its head is tied"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Whether a path, which need not exist, is `folder` or inside it.
fn is_within(place: &Path, folder: &Path) -> bool {
    let known = place.ancestors().find_map(|above| match above.as_os_str().is_empty() {
        true => Path::new(".").canonicalize().ok(),
        false => above.canonicalize().ok(),
    });
    matches!((known, folder.canonicalize()), (Some(known), Ok(folder)) if known.starts_with(&folder))
}
