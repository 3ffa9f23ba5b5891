//! How far apart the logits of two forms of one base are, such as a folder and its quantized file, bare and with adapters.

use crate::output::console::Output;
use crate::output::progress_bar;
use crate::output::text_table::{ABSENT, table};
use crate::verification::logit_difference::LogitDifference;
use crate::verification::merge_recipe::alone;
use crate::verification::random_rows::RandomRows;
use anyhow::{Context as _, Result, ensure};
use candle_core::{D, DType, Tensor};
use lorakit_adapter::{BaseModule, path_in_text_model};
use lorakit_lora::Patches;
use lorakit_model::Base;
use lorakit_route::Expert;
use serde::Serialize;

/// The name of the bases without an adapter.
const BARE: &str = "base";

/// The difference of two forms of a base.
#[derive(Serialize)]
pub struct FormDifference {
    /// The expert, or `base`.
    pub name: String,
    /// The largest difference of logits.
    pub difference: f64,
    /// The root of the mean squared difference.
    pub root_mean_square: f64,
    /// The share of tokens after which both predict the same token.
    pub same_prediction: f64,
    /// The largest effect of the expert on the first form's logits, for scale; none for the bases alone.
    pub effect: Option<f64>,
}

/// Refuses two bases that are not of one architecture and size.
pub fn ensure_one_form(base: &Base, other: &Base) -> Result<()> {
    let names = [base, other].map(|base| &base.identity().name);
    let [vocabulary, other_vocabulary] = [base, other].map(|base| base.config().vocabulary);
    ensure!(
        vocabulary == other_vocabulary,
        "`{}` has {vocabulary} tokens, and `{}` {other_vocabulary}; expected two forms of one base",
        names[0],
        names[1]
    );
    let [own, others] = [base, other].map(text_modules);
    let differs =
        own.iter().find(|module| !others.contains(module)).or(others.iter().find(|module| !own.contains(module)));
    if let Some(module) = differs {
        let path = &module.path;
        anyhow::bail!("`{}` and `{}` differ in module `{path}`; expected two forms of one base", names[0], names[1]);
    }
    Ok(())
}

/// The modules of a base by their paths in its text model, which may be within a multimodal one.
fn text_modules(base: &Base) -> Vec<BaseModule> {
    let alone = |module: BaseModule| BaseModule { path: path_in_text_model(&module.path), ..module };
    base.adaptable_modules().into_iter().map(alone).collect()
}

/// Compares two forms of a base, bare and with each expert.
pub fn compare(
    base: &Base,
    other: &Base,
    experts: &[Expert],
    rows: &RandomRows,
    output: &Output,
) -> Result<Vec<FormDifference>> {
    let plain = rows.logits(base, &Patches::none())?;
    let bare = difference(BARE, &rows.logits(other, &Patches::none())?, &plain)?;
    let mut compared = vec![bare];
    let bar = progress_bar::bar(output, experts.len() as u64, "verify");
    for expert in experts {
        let with = |base: &Base| -> Result<Tensor> {
            let modules = base.adaptable_modules();
            let adapter = expert.adapter.clone().with_modules_of(&modules)?;
            adapter.check_against(&modules)?;
            rows.logits(base, &alone(&adapter, base)?)
        };
        let both = || -> Result<FormDifference> {
            let own = with(base)?;
            let effect = Some(LogitDifference::of(&own, &plain)?.largest);
            Ok(FormDifference { effect, ..difference(&expert.name, &with(other)?, &own)? })
        };
        compared.push(both().with_context(|| format!("expert `{}`", expert.name))?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(compared)
}

fn difference(name: &str, other: &Tensor, own: &Tensor) -> Result<FormDifference> {
    let LogitDifference { largest, root_mean_square } = LogitDifference::of(other, own)?;
    let same = own.argmax(D::Minus1)?.eq(&other.argmax(D::Minus1)?)?.to_dtype(DType::F32)?.mean_all()?;
    Ok(FormDifference {
        name: name.to_owned(),
        difference: largest,
        root_mean_square,
        same_prediction: f64::from(same.to_scalar::<f32>()?),
        effect: None,
    })
}

/// The differences as a table.
pub fn differences_table(compared: &[FormDifference]) -> String {
    let number = |value: f64| format!("{value:.1e}");
    let line = |difference: &FormDifference| {
        vec![
            difference.name.clone(),
            number(difference.difference),
            number(difference.root_mean_square),
            format!("{:.1} %", 100.0 * difference.same_prediction),
            difference.effect.map_or_else(|| ABSENT.to_owned(), number),
        ]
    };
    let header = ["with", "largest difference", "root mean square", "same prediction", "adapter's effect"];
    table(header, compared.iter().map(line))
}
