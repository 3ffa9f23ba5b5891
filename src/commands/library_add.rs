//! `library add`: adds PEFT adapter folders and GGUF adapters to a library.

use crate::adding::compatibility::{check_base, refuse_incompatible};
use crate::adding::named_folder::NamedFolder;
use crate::adding::new_expert::{NewExpert, OpenBase};
use crate::adding::new_experts::NewExperts;
use crate::adding::refusal::Refusal;
use crate::adding::warnings::{print_warnings, warn_of_added_a};
use crate::base::base_source::BaseSource;
use crate::command_context::CommandContext;
use crate::output::text_table::table;
use anyhow::Result;
use clap::Args;
use lorakit_adapter::{Adapter, Library};
use lorakit_fit::conversion::{Conversion, ConvertedModule};
use lorakit_fit::{lock, lock_for, pluralize};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The arguments of `library add`.
#[derive(Args, Debug)]
pub struct AddArgs {
    /// Library; created if it does not exist
    #[arg(long, value_name = "L")]
    library: PathBuf,
    /// Base model of the adapters; it is recorded, and every adapter is checked against it
    #[arg(long, value_name = "B")]
    base: Option<BaseSource>,
    /// Convert DoRA, modules_to_save and trainable_token_indices to plain LoRA of rank R; --base must be the base that they
    /// were trained on
    #[arg(long, value_name = "svd:rank=R", requires = "base")]
    convert: Option<SvdRank>,
    /// Add the other adapters where some are refused, instead of none
    #[arg(long)]
    skip_refused: bool,
    /// Leave out what adapters of a multimodal base change in its image encoder, instead of refusing them: text
    /// behavior is unchanged; the image encoder is left as in the base
    #[arg(long)]
    skip_image_encoder: bool,
    /// Adapter folders, GGUF adapters (FILE.gguf), hub:ORG/NAME[@REV][/FOLDER|/FILE.gguf], or hub:ORG/PATTERN with * for any
    /// text; the name of an expert defaults to that of its folder, file or repository
    #[arg(required = true, value_name = "[NAME=]DIR")]
    adapters: Vec<NamedFolder>,
}

/// `svd:rank=R` as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SvdRank(usize);

impl FromStr for SvdRank {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rank = text.strip_prefix("svd:rank=").and_then(|rank| rank.parse().ok());
        rank.filter(|rank| *rank > 0).map(Self).ok_or("expected svd:rank=R with a rank R of at least 1")
    }
}

/// Adds all adapters, or none if one is refused.
pub fn run(args: &AddArgs, context: &CommandContext) -> Result<()> {
    let base = args.base.as_ref().map(|base| OpenBase::open(base, context)).transpose()?;
    let folders = args.adapters.iter().map(|named| named.local(context)).collect::<Result<Vec<_>>>()?;
    let folders = folders.into_iter().flatten().collect();
    let recorded = Library::open_if_exists(&args.library)?.and_then(|library| library.base().cloned());
    let identity = base.as_ref().map(|open| open.base.identity()).or(recorded.as_ref());
    let mut experts = NewExperts::read(folders, |named| match (args.convert, &base) {
        (Some(SvdRank(rank)), Some(base)) => NewExpert::convert(named, base, rank, args.skip_image_encoder),
        // The biases are compared with the base's below.
        (_, Some(_)) => NewExpert::read(named, identity, Adapter::read_with_base_biases),
        (_, None) => NewExpert::read(named, identity, Adapter::read),
    });
    if args.skip_image_encoder {
        experts.leave_out_image_encoders();
    }
    add_all(AddTarget { root: &args.library, base: base.as_ref() }, experts, args.skip_refused, context)
}

/// Where adapters are added.
#[derive(Clone, Copy)]
pub struct AddTarget<'a> {
    /// The library's folder.
    pub root: &'a Path,
    /// The base that they are checked against, and that is recorded.
    pub base: Option<&'a OpenBase>,
}

/// Adds experts to a library, all or none unless `skip` leaves out those that are refused, and reports them.
pub fn add_all(to: AddTarget, mut experts: NewExperts, skip: bool, context: &CommandContext) -> Result<()> {
    if let Some(base) = to.base {
        experts.retain(|expert| check_base(expert, base));
    }
    let base = to.base.map(|open| &open.base);
    let identity = base.map(|base| base.identity());
    let is_new = Library::open_if_exists(to.root)?.is_none();
    if is_new {
        // A library is not created for nothing.
        let planned = Library::open_or_plan(to.root, identity)?;
        refuse_incompatible(&mut experts, &planned)?;
        experts.ensure_accepted(skip)?;
        warn_of_added_a(&experts.accepted, &planned, context)?;
    }
    experts.accepted.iter().try_for_each(|expert| print_warnings(expert, base, context))?;
    let library = Library::open_or_create(to.root, identity)?;
    let library = library.guarded_by(&[&match base {
        Some(base) => lock_for(&library, base, context)?,
        None => lock(&library, context)?,
    }]);
    // Another process may have created or changed it meanwhile.
    refuse_incompatible(&mut experts, &library)?;
    experts.ensure_accepted(skip)?;
    if !is_new {
        warn_of_added_a(&experts.accepted, &library, context)?;
    }
    for refusal in &experts.refused {
        context.output.warn(format!("not added: {refusal}"));
    }
    let within = |expert: &NewExpert| match base {
        Some(base) => expert.adapter.clone().with_target_names(&base.adaptable_modules()),
        None => expert.adapter.clone(),
    };
    let adapters: Vec<Adapter> = experts.accepted.iter().map(within).collect();
    let entry = |(expert, adapter)| {
        let NewExpert { name, record, .. }: &NewExpert = expert;
        (name.as_str(), adapter, record.as_ref())
    };
    library.add_all(&experts.accepted.iter().zip(&adapters).map(entry).collect::<Vec<_>>())?;
    report(to.root, &experts, context)
}

fn report(root: &Path, experts: &NewExperts, context: &CommandContext) -> Result<()> {
    let added = |NewExpert { name, folder, adapter, conversion, .. }: &NewExpert| {
        let (modules, parameters) = (adapter.modules().len(), adapter.parameters());
        let mut one = json!({ "name": name, "from": folder, "modules": modules, "parameters": parameters });
        if let Some(conversion) = conversion {
            one["conversion"] = json!(conversion);
        }
        one
    };
    let refused = |Refusal { name, folder, error }: &Refusal| json!({ "name": name, "from": folder, "reason": format!("{error:#}") });
    let document = json!({
        "library": root,
        "added": experts.accepted.iter().map(added).collect::<Vec<_>>(),
        "refused": experts.refused.iter().map(refused).collect::<Vec<_>>(),
    });
    context.output.result(&document, || {
        let line = |NewExpert { name, folder, adapter, .. }: &NewExpert| {
            let (modules, parameters) = (adapter.modules().len(), adapter.parameters());
            vec![name.clone(), modules.to_string(), parameters.to_string(), folder.display().to_string()]
        };
        let mut text = table(["added", "modules", "parameters", "from"], experts.accepted.iter().map(line));
        for NewExpert { name, conversion, .. } in &experts.accepted {
            if let Some(conversion) = conversion {
                text.push_str(&format!("\n\n{}", conversion_text(name, conversion, context.output.verbose)));
            }
        }
        text
    })
}

/// What a conversion took away, with all modules if `verbose`.
fn conversion_text(name: &str, conversion: &Conversion, verbose: bool) -> String {
    let Conversion { rank, modules, tokens, logits_difference, logits_change } = conversion;
    let share = |share: f64| format!("{:.2} %", 100.0 * share);
    let least = modules.iter().map(|module| module.retained).fold(1.0, f64::min);
    let summary = format!(
        "{name}: {} converted to rank {rank}: of the squared norm of each change, {} is retained on average and {} at the \
         least\n{name}: logits of {tokens} random tokens differ by at most {logits_difference:.3e} from the adapter as it \
         was, which moves those of the base by up to {logits_change:.3e}",
        pluralize(modules.len(), "module"),
        share(conversion.retained()),
        share(least),
    );
    if !verbose {
        return summary;
    }
    let line = |module: &ConvertedModule| {
        let (retained, error) = (share(module.retained), format!("{:.4}", module.error));
        vec![module.module.clone(), module.kind.clone(), module.rank.to_string(), retained, error]
    };
    format!("{summary}\n{}", table(["module", "was", "rank", "retained", "error"], modules.iter().map(line)))
}

#[cfg(test)]
mod tests {
    use super::SvdRank;

    #[test]
    fn conversions_are_typed_as_merges_are() {
        assert_eq!("svd:rank=16".parse(), Ok(SvdRank(16)));
        assert!(["svd", "svd:rank=0", "svd:16", "rank=4"].iter().all(|text| text.parse::<SvdRank>().is_err()));
    }
}
