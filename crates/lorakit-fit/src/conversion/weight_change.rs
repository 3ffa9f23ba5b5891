//! The exact change of a base's weight: by DoRA, `m (W + s B A) / |W + s B A| - W`; by a copy `W'`, `W' - W`; by new rows of
//! single tokens, the same in these rows.

use crate::error::{FitError, Result};
use lorakit_adapter::{BaseModule, DenseAdapter, LowRank, Matrix, ModuleKind, TokenRows};
use lorakit_model::{BaseConfig, Checkpoint};
use lorakit_route::merge::{ModuleReport, compress};

/// The base's weights, as an adapter's modules name them.
pub(super) struct BaseWeights<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) config: &'a BaseConfig,
    pub(super) modules: &'a [BaseModule],
}

/// How a module's weight changes.
pub(super) enum WeightChange<'a> {
    /// By DoRA.
    Dora {
        /// `s B A`.
        update: &'a LowRank,
        /// `m`, `[1, out]`.
        magnitude: &'a Matrix,
    },
    /// To a copy, as stored.
    Copy(&'a Matrix),
    /// In the rows of some tokens, of an embedding or a head.
    Tokens(&'a TokenRows),
}

impl<'a> WeightChange<'a> {
    /// The changes in `adapter` that A and B do not make, by module, over a base of this configuration.
    pub(super) fn all(adapter: &'a DenseAdapter, config: &BaseConfig) -> Vec<(&'a str, Self)> {
        let dora = adapter.magnitudes().iter().filter_map(|(path, magnitude)| {
            let update = adapter.low_rank().modules().get(path)?;
            Some((path.as_str(), Self::Dora { update, magnitude }))
        });
        let copies = adapter.copies().iter().map(|(path, copy)| (path.as_str(), Self::Copy(copy)));
        let tokens = adapter.token_rows();
        // In PEFT a tied head has the rows of its embedding, whether or not its configuration ties them.
        let head = config.descriptor.lm_head;
        let tied = tokens.get(config.descriptor.embedding).filter(|_| config.tied && !tokens.contains_key(head));
        let tokens = tokens.iter().map(|(path, rows)| (path.as_str(), rows)).chain(tied.map(|rows| (head, rows)));
        dora.chain(copies).chain(tokens.map(|(path, rows)| (path, Self::Tokens(rows)))).collect()
    }

    /// What it is called in reports.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Dora { .. } => "DoRA",
            Self::Copy(_) => "modules_to_save",
            Self::Tokens(_) => "trainable_token_indices",
        }
    }
}

impl BaseWeights<'_> {
    /// The base's module at `path`.
    ///
    /// # Errors
    /// If it has none that an adapter can change.
    pub(super) fn module(&self, path: &str) -> Result<&BaseModule> {
        let found = self.modules.iter().find(|module| module.path == path);
        found.ok_or_else(|| FitError::NotConvertible {
            module: path.to_owned(),
            reason: "the base has no linear module or embedding of that name".to_owned(),
        })
    }

    /// The weight of a module in f64, `[out, in]`: an embedding's, whose rows are tokens, transposed.
    pub(super) fn weight(&self, module: &BaseModule) -> Result<Vec<f64>> {
        let (rows, columns) = stored_shape(module);
        let stored = self.checkpoint.get(&self.name(module), &[rows, columns])?;
        let values = stored.values();
        Ok(oriented(module, &values))
    }

    /// The name of a module's weight in the checkpoint.
    fn name(&self, module: &BaseModule) -> String {
        let tied = module.kind == ModuleKind::LmHead && self.config.tied;
        format!("{}.weight", if tied { self.config.descriptor.embedding } else { module.path.as_str() })
    }

    /// The bias of a module, if it has one.
    pub(super) fn bias(&self, module: &BaseModule) -> Result<Option<Vec<f32>>> {
        let name = format!("{}.bias", module.path);
        if !self.checkpoint.names().any(|known| known == name) {
            return Ok(None);
        }
        Ok(Some(self.checkpoint.get(&name, &[module.output])?.values().into_owned()))
    }

    /// The change of a module's weight in f64, `[out, in]`.
    ///
    /// # Errors
    /// If the shapes are not those of the base.
    pub(super) fn change(&self, path: &str, change: &WeightChange) -> Result<Vec<f64>> {
        let module = self.module(path)?;
        match change {
            WeightChange::Dora { update, magnitude } => {
                let mut weight = self.weight(module)?;
                let gains = dora_gains(module, &weight, update, magnitude)?;
                add_update(&mut weight, update, |row, own, sum| gains[row] * (own + sum) - own);
                Ok(weight)
            }
            WeightChange::Copy(copy) => {
                let (rows, columns) = stored_shape(module);
                if (copy.rows(), copy.cols()) != (rows, columns) {
                    return Err(other_shape(module, format!("the copy is [{}, {}]", copy.rows(), copy.cols())));
                }
                let (mut weight, copy) = (self.weight(module)?, oriented(module, &copy.values()));
                weight.iter_mut().zip(copy).for_each(|(own, copy)| *own = copy - *own);
                Ok(weight)
            }
            WeightChange::Tokens(tokens) => {
                let (rows, width) = (self.token_change(module, tokens)?, tokens.rows().cols());
                let mut whole = vec![0.0; module.output * module.input];
                for (token, row) in tokens.tokens().iter().zip(rows.chunks_exact(width)) {
                    for (feature, value) in row.iter().enumerate() {
                        let at = match module.kind {
                            ModuleKind::Embedding => feature * module.input + token,
                            _ => token * module.input + feature,
                        };
                        whole[at] = *value;
                    }
                }
                Ok(whole)
            }
        }
    }

    /// The update of a module, truncated to `rank`, and what that took away.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    pub(super) fn truncated(&self, path: &str, change: &WeightChange, rank: usize) -> Result<(LowRank, ModuleReport)> {
        let module = self.module(path)?;
        let WeightChange::Tokens(tokens) = change else {
            return Ok(compress(path, &self.change(path, change)?, [module.output, module.input], rank)?);
        };
        // Of the few rows that change; the others are zero in A or B.
        let (rows, [count, width]) =
            (self.token_change(module, tokens)?, [tokens.tokens().len(), tokens.rows().cols()]);
        let (update, report) = compress(path, &rows, [count, width], rank)?;
        let (by_token, by_feature, rank) = (update.b().values(), update.a(), update.rank());
        let vocabulary = stored_shape(module).0;
        let mut of_all = vec![0.0; vocabulary * rank];
        for (token, row) in tokens.tokens().iter().zip(by_token.chunks_exact(rank)) {
            of_all[token * rank..][..rank].copy_from_slice(row);
        }
        let of_all = Matrix::new(vocabulary, rank, of_all)?;
        let update = match module.kind {
            ModuleKind::Embedding => LowRank::new(of_all.transposed(), by_feature.transposed(), update.scale())?,
            _ => LowRank::new(by_feature.clone(), of_all, update.scale())?,
        };
        Ok((update, report))
    }

    /// The change of single rows of an embedding or a head, `[tokens, width]`.
    fn token_change(&self, module: &BaseModule, tokens: &TokenRows) -> Result<Vec<f64>> {
        let (vocabulary, width) = stored_shape(module);
        let largest = tokens.tokens().iter().max().copied().unwrap_or_default();
        let has_rows = matches!(module.kind, ModuleKind::Embedding | ModuleKind::LmHead);
        if !has_rows || largest >= vocabulary || tokens.rows().cols() != width {
            return Err(other_shape(
                module,
                format!("the new rows have width {}, for tokens up to {largest}", tokens.rows().cols()),
            ));
        }
        let stored = self.checkpoint.get(&self.name(module), &[vocabulary, width])?;
        let (mut own, rows) = (vec![0.0; width], tokens.rows().values());
        let mut change = Vec::with_capacity(rows.len());
        for (token, row) in tokens.tokens().iter().zip(rows.chunks_exact(width)) {
            stored.copy_row(*token, &mut own);
            change.extend(row.iter().zip(&own).map(|(new, old)| f64::from(*new) - f64::from(*old)));
        }
        Ok(change)
    }
}

/// `m / |W + s B A|` of each row; `weight` is `[out, in]`.
pub(super) fn dora_gains(
    module: &BaseModule,
    weight: &[f64],
    update: &LowRank,
    magnitude: &Matrix,
) -> Result<Vec<f64>> {
    if (update.input(), update.output()) != (module.input, module.output) {
        return Err(other_shape(module, format!("the LoRA is [{}, {}]", update.output(), update.input())));
    }
    let mut sums = weight.to_vec();
    add_update(&mut sums, update, |_, own, sum| own + sum);
    let norm = |row: &[f64]| row.iter().map(|value| value * value).sum::<f64>().sqrt();
    Ok(sums.chunks_exact(module.input).zip(&*magnitude.values()).map(|(row, m)| f64::from(*m) / norm(row)).collect())
}

/// Replaces each value of `weight` by `make(row, value, its value in s B A)`.
fn add_update(weight: &mut [f64], update: &LowRank, make: impl Fn(usize, f64, f64) -> f64) {
    let (a, b) = (update.a().values(), update.b().values());
    let mut sums = vec![0.0; update.input()];
    for (row, (values, b)) in weight.chunks_exact_mut(update.input()).zip(b.chunks_exact(update.rank())).enumerate() {
        sums.fill(0.0);
        for (b, a) in b.iter().zip(a.chunks_exact(update.input())) {
            let b = update.scale() * f64::from(*b);
            sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * f64::from(*a));
        }
        values.iter_mut().zip(&sums).for_each(|(value, sum)| *value = make(row, *value, *sum));
    }
}

/// The shape of a module's weight in files.
fn stored_shape(module: &BaseModule) -> (usize, usize) {
    match module.kind {
        ModuleKind::Embedding => (module.input, module.output),
        _ => (module.output, module.input),
    }
}

/// Stored values in f64 as `[out, in]`.
fn oriented(module: &BaseModule, values: &[f32]) -> Vec<f64> {
    if module.kind != ModuleKind::Embedding {
        return values.iter().map(|value| f64::from(*value)).collect();
    }
    let column = |feature: usize| values.iter().skip(feature).step_by(module.output).map(|value| f64::from(*value));
    (0..module.output).flat_map(column).collect()
}

fn other_shape(module: &BaseModule, found: String) -> FitError {
    FitError::NotConvertible {
        module: module.path.clone(),
        reason: format!("{found}, and the base has {} outputs and {} inputs there", module.output, module.input),
    }
}
