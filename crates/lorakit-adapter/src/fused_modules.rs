//! Adapters between bases of one form whose checkpoints name their projections differently: `q_proj`, `k_proj` and
//! `v_proj`, or one `qkv_proj` with their outputs one after the other; `gate_proj` and `up_proj`, or `gate_up_proj`.
//!
//! The updates of split projections are one update of the fused one: their A's stacked by rank, their B's
//! block-diagonal. The update of a fused projection is one of each split one, with its A and its own rows of B.

use std::collections::{BTreeMap, BTreeSet};

use crate::adapter::Adapter;
use crate::base_module::BaseModule;
use crate::error::{AdapterError, Result, Within};
use crate::low_rank::LowRank;
use crate::matrix::Matrix;
use crate::name_list::quote_names;
use crate::warning::Warning;

/// A fused projection, and the split ones in the order of their outputs.
struct Fusion {
    fused: &'static str,
    split: &'static [&'static str],
}

const FUSIONS: [Fusion; 2] = [
    Fusion { fused: "qkv_proj", split: &["q_proj", "k_proj", "v_proj"] },
    Fusion { fused: "gate_up_proj", split: &["gate_proj", "up_proj"] },
];

impl Adapter {
    /// The same adapter for a base whose projections are fused where the adapter's are split, or the other way round, with
    /// a warning that names them; as it is where nothing has to change.
    ///
    /// # Errors
    /// If the widths do not add up to those of the base, or the adapter has both forms of a projection.
    pub(crate) fn with_projections_of(self, base: &[BaseModule]) -> Result<Self> {
        let known: BTreeMap<&str, &BaseModule> = base.iter().map(|module| (module.path.as_str(), module)).collect();
        let foreign = self.modules().keys().filter(|path| !known.contains_key(path.as_str()));
        let places: BTreeSet<(String, usize)> = foreign.filter_map(|path| place(path)).collect();
        let (mut modules, mut named) = (self.modules().clone(), BTreeSet::new());
        for (parent, index) in places {
            let Fusion { fused, split } = &FUSIONS[index];
            let path = |name: &str| format!("{parent}.{name}");
            let targets: Vec<&BaseModule> =
                split.iter().filter_map(|name| known.get(path(name).as_str()).copied()).collect();
            if let Some(target) = known.get(path(fused).as_str()) {
                ensure_absent(&modules, &[*target], &format!("{parent}.({})", split.join("|")))?;
                let parts: Vec<Option<LowRank>> = split.iter().map(|name| modules.remove(&path(name))).collect();
                let update = fuse(&parts, target.output).within(|| format!("module `{}`", target.path))?;
                modules.insert(target.path.clone(), update);
                named.insert(format!("{} as {fused}", split.join(", ")));
            } else if targets.len() == split.len()
                && let Some(update) = modules.remove(&path(fused))
            {
                ensure_absent(&modules, &targets, &path(fused))?;
                let widths: Vec<usize> = targets.iter().map(|target| target.output).collect();
                let parts = self::split(&update, &widths).within(|| format!("module `{}`", path(fused)))?;
                modules.extend(targets.iter().map(|target| target.path.clone()).zip(parts));
                named.insert(format!("{fused} as {}", split.join(", ")));
            }
        }
        if named.is_empty() {
            return Ok(self);
        }
        let named: Vec<String> = named.into_iter().collect();
        let text =
            format!("written for a base of the same form with other projections; served here: {}", named.join("; "));
        Ok(self.with_modules(modules).with_warning(Warning::new("target_modules", text)))
    }
}

/// Refuses an adapter with updates of the `targets` that those of `foreign` would replace.
fn ensure_absent(modules: &BTreeMap<String, LowRank>, targets: &[&BaseModule], foreign: &str) -> Result<()> {
    match targets.iter().find(|target| modules.contains_key(&target.path)) {
        None => Ok(()),
        Some(target) => Err(AdapterError::AdapterBase(format!(
            "the adapter changes `{}`, and the same projection as `{foreign}`, which the base does not have; expected one of \
             them",
            target.path
        ))),
    }
}

/// The parent of a module, and the fusion that it belongs to.
fn place(path: &str) -> Option<(String, usize)> {
    let (parent, name) = path.rsplit_once('.')?;
    let index = FUSIONS.iter().position(|fusion| fusion.fused == name || fusion.split.contains(&name))?;
    Some((parent.to_owned(), index))
}

/// The update of a fused projection of `output` outputs from those of its parts, of which some may have none.
fn fuse(parts: &[Option<LowRank>], output: usize) -> Result<LowRank> {
    let widths = widths(parts, output)?;
    let given: Vec<&LowRank> = parts.iter().flatten().collect();
    let input = given.first().map_or(0, |part| part.input());
    if let Some(other) = given.iter().find(|part| part.input() != input) {
        return Err(AdapterError::Shape(format!("its parts have {input} and {} inputs", other.input())));
    }
    let rank: usize = given.iter().map(|part| part.rank()).sum();
    let a: Vec<f32> = given.iter().flat_map(|part| part.a().values().into_owned()).collect();
    let mut b = vec![0.0; output * rank];
    let (mut row, mut column) = (0, 0);
    for (part, width) in parts.iter().zip(widths) {
        if let Some(part) = part {
            for (own, to) in part.b().values().chunks_exact(part.rank()).zip(b.chunks_exact_mut(rank).skip(row)) {
                let to = &mut to[column..column + part.rank()];
                to.iter_mut().zip(own).for_each(|(to, own)| *to = (part.scale() * f64::from(*own)) as f32);
            }
            column += part.rank();
        }
        row += width;
    }
    LowRank::new(Matrix::new(rank, input, a)?, Matrix::new(output, rank, b)?, 1.0)
}

/// The widths of the parts of a fused projection. Those without an update share what is left: keys are as wide as values,
/// and a gate as what it gates.
fn widths(parts: &[Option<LowRank>], output: usize) -> Result<Vec<usize>> {
    let mut widths: Vec<Option<usize>> = parts.iter().map(|part| part.as_ref().map(LowRank::output)).collect();
    let wrong = |widths: &[Option<usize>]| {
        let given: Vec<String> =
            widths.iter().map(|width| width.map_or("?".to_owned(), |width| width.to_string())).collect();
        AdapterError::Shape(format!("its parts have {} outputs, and the base {output} together", given.join(" + ")))
    };
    let last = widths.len() - 1;
    if let Some(pair) = widths[last - 1].or(widths[last]) {
        (widths[last - 1], widths[last]) = (widths[last - 1].or(Some(pair)), widths[last].or(Some(pair)));
    }
    let missing = widths.iter().filter(|width| width.is_none()).count();
    let left = output.checked_sub(widths.iter().flatten().sum()).ok_or_else(|| wrong(&widths))?;
    if left.checked_rem(missing).unwrap_or(left) != 0 {
        return Err(wrong(&widths));
    }
    Ok(widths.into_iter().map(|width| width.unwrap_or_else(|| left / missing)).collect())
}

/// The updates of the parts of a fused projection, of these widths.
fn split(update: &LowRank, widths: &[usize]) -> Result<Vec<LowRank>> {
    if widths.iter().sum::<usize>() != update.output() {
        return Err(AdapterError::Shape(format!(
            "it has {} outputs, and the base's projections {} have {} together",
            update.output(),
            quote_names(widths),
            widths.iter().sum::<usize>()
        )));
    }
    let (b, rank) = (update.b().values(), update.rank());
    let mut start = 0;
    let part = |width: &usize| {
        let rows = b[start * rank..(start + width) * rank].to_vec();
        start += width;
        LowRank::new(update.a().clone(), Matrix::new(*width, rank, rows)?, update.scale())
    };
    widths.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::base_module::ModuleKind;

    const PARENT: &str = "model.layers.0.self_attn";

    fn base(names: &[(&str, usize)]) -> Vec<BaseModule> {
        let module = |(name, output): &(&str, usize)| BaseModule {
            path: format!("{PARENT}.{name}"),
            input: 3,
            output: *output,
            kind: ModuleKind::Linear,
        };
        names.iter().map(module).collect()
    }

    fn update(seed: usize, rank: usize, output: usize, scale: f64) -> LowRank {
        let values = |count: usize, from: usize| (0..count).map(|i| ((i * 7 + from * 13) % 11) as f32 - 5.0).collect();
        let (a, b) = (values(rank * 3, seed), values(output * rank, seed + 1));
        LowRank::new(Matrix::new(rank, 3, a).unwrap(), Matrix::new(output, rank, b).unwrap(), scale).unwrap()
    }

    fn adapter(names: &[(&str, LowRank)]) -> Adapter {
        Adapter::new(names.iter().map(|(name, update)| (format!("{PARENT}.{name}"), update.clone())).collect())
    }

    fn rows(updates: &[LowRank]) -> Vec<f32> {
        updates.iter().flat_map(LowRank::delta).collect()
    }

    #[test]
    fn split_updates_become_one_of_the_fused_projection_and_back() {
        let [q, k, v] = [update(1, 2, 4, 0.5), update(2, 1, 2, 2.0), update(3, 3, 2, -1.0)];
        let (fused, apart) = (base(&[("qkv_proj", 8)]), base(&[("q_proj", 4), ("k_proj", 2), ("v_proj", 2)]));
        let original = adapter(&[("q_proj", q.clone()), ("k_proj", k.clone()), ("v_proj", v.clone())]);
        let on_fused = original.clone().with_projections_of(&fused).unwrap();
        let one = &on_fused.modules()[&format!("{PARENT}.qkv_proj")];
        assert_eq!((one.rank(), one.delta()), (6, rows(&[q, k, v])));
        assert!(on_fused.warnings()[0].text.contains("q_proj, k_proj, v_proj as qkv_proj"));
        on_fused.check_against(&fused).unwrap();
        let back = on_fused.with_projections_of(&apart).unwrap();
        back.check_against(&apart).unwrap();
        for (path, update) in original.modules() {
            assert_eq!(back.modules()[path].delta(), update.delta(), "{path}");
        }
        assert_eq!(original.clone().with_projections_of(&apart).unwrap().warnings(), []);
    }

    #[test]
    fn an_adapter_with_both_forms_of_a_projection_is_refused() {
        let (fused, apart) = (base(&[("qkv_proj", 8)]), base(&[("q_proj", 4), ("k_proj", 2), ("v_proj", 2)]));
        let both = adapter(&[("qkv_proj", update(1, 2, 8, 1.0)), ("k_proj", update(2, 1, 2, 1.0))]);
        for (base, target) in [(fused, "qkv_proj"), (apart, "k_proj")] {
            let error = both.clone().with_projections_of(&base).unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{PARENT}.{target}`")) && error.contains("expected one of them"),
                "{error}"
            );
        }
    }

    #[test]
    fn parts_without_an_update_have_the_width_that_is_left() {
        let zeros = |width: usize| vec![0.0; width * 3];
        let fused = base(&[("qkv_proj", 8)]);
        let delta = |names: &[(&str, LowRank)]| {
            adapter(names).with_projections_of(&fused).unwrap().modules()[&format!("{PARENT}.qkv_proj")].delta()
        };
        let (q, v) = (update(1, 2, 4, 0.5), update(3, 3, 2, -1.0));
        assert_eq!(delta(&[("q_proj", q.clone())]), [q.delta(), zeros(4)].concat());
        assert_eq!(delta(&[("v_proj", v.clone())]), [zeros(6), v.delta()].concat());
        assert_eq!(delta(&[("q_proj", q.clone()), ("v_proj", v.clone())]), [q.delta(), zeros(2), v.delta()].concat());
        let error = adapter(&[("q_proj", update(1, 2, 9, 0.5))]).with_projections_of(&fused).unwrap_err();
        assert!(error.chain().contains("9 + ? + ? outputs, and the base 8 together"), "{}", error.chain());
    }

    #[test]
    fn a_fused_update_needs_projections_of_its_width() {
        let apart = base(&[("gate_proj", 4), ("up_proj", 4)]);
        let error = adapter(&[("gate_up_proj", update(1, 2, 6, 1.0))]).with_projections_of(&apart).unwrap_err();
        assert!(error.chain().contains("gate_up_proj") && error.chain().contains("8 together"), "{}", error.chain());
        let two = adapter(&[("gate_up_proj", update(1, 2, 8, 1.0))]).with_projections_of(&apart).unwrap();
        assert_eq!(two.modules().len(), 2);
    }
}
