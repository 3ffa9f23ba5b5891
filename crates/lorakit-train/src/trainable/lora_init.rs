//! Initial values of LoRA adapters: random A, zero B, or a given adapter.

use crate::error::{Result, TrainError};
use crate::train_config::TrainConfig;
use lorakit_adapter::{Adapter, LowRank, Matrix};
use lorakit_format::rng::Key;
use lorakit_lora::{Site, SiteRole};
use lorakit_model::Base;
use std::collections::BTreeMap;

/// A uniform draw of A as PEFT initializes it: U(-1/sqrt(in), 1/sqrt(in)) (Kaiming with a = sqrt 5), `[rank, in]`.
///
/// It depends on the seed and the module, never on the expert, so that all experts of a library start from the same A:
/// clustering by parameters, averaging and separate mixing depend on it. Each rank has a stream of its own, so that a
/// smaller rank's A is the beginning of a larger one's.
pub fn initial_a(seed: u64, module: &str, rank: usize, input: usize) -> Vec<f32> {
    let bound = 1.0 / (input as f32).sqrt();
    let row = |r| {
        let mut stream = Key::new(seed, "initial A").text(module).number(r as u64).stream();
        (0..input).map(move |_| (2.0 * stream.uniform() - 1.0) * bound).collect::<Vec<f32>>()
    };
    (0..rank).flat_map(row).collect()
}

/// Adapters that skills start from: an A for each, drawn from the seed, the module and the skill's index; B zero.
pub fn init_skills(base: &Base, config: &TrainConfig, count: usize, seed: u64) -> Result<Vec<Adapter>> {
    let targets = config.targets(base)?;
    let mut skills = vec![BTreeMap::new(); count];
    for site in base.sites() {
        let mut first: Option<&str> = None;
        for projection in &site.projections {
            if !targets.matches(&projection.module)? {
                continue;
            }
            let first = *first.get_or_insert(&projection.module);
            let drawn_as = if ties_a(config, site) { first } else { &projection.module };
            // Each rank of an A has its own stream: the skills divide the ranks of one large A.
            let a = initial_a(seed, drawn_as, count * config.rank, site.input);
            for (skill, a) in skills.iter_mut().zip(a.chunks_exact(config.rank * site.input)) {
                let a = Matrix::new(config.rank, site.input, a.to_vec())?;
                let b = Matrix::new(projection.width, config.rank, vec![0.0; projection.width * config.rank])?;
                skill.insert(projection.module.clone(), LowRank::new(a, b, config.scale())?);
            }
        }
    }
    Ok(skills.into_iter().map(Adapter::new).collect())
}

/// Whether the projections of a site share one A.
pub(crate) fn ties_a(config: &TrainConfig, site: &Site) -> bool {
    config.tie_qkv && site.role == SiteRole::AttentionInput
}

/// The config under which these adapters would have been trained: their rank, alpha and modules.
///
/// # Errors
/// If there is no adapter, or their modules differ in rank or scale.
pub fn config_for_adapters(adapters: &[Adapter], config: &TrainConfig) -> Result<TrainConfig> {
    let first = adapters.first().ok_or(TrainError::NoAdapters)?;
    let (_, pair) = first.modules().first_key_value().ok_or(TrainError::NoModules)?;
    let (rank, scale) = (pair.rank(), pair.scale());
    for (module, other) in adapters.iter().flat_map(Adapter::modules) {
        let same_scale = (other.scale() - scale).abs() < 1e-9;
        if other.rank() != rank || !same_scale {
            return Err(TrainError::MixedShapes {
                module: module.clone(),
                found: (other.rank(), other.scale()),
                expected: (rank, scale),
            });
        }
    }
    let target_modules = first.modules().keys().cloned().collect::<Vec<_>>().join(",");
    Ok(TrainConfig {
        rank,
        alpha: scale * rank as f64,
        use_rslora: false,
        target_modules,
        tie_qkv: false,
        ..config.clone()
    })
}

/// The pair of a module in an adapter that training starts from; the config must agree with its rank and scale.
pub(crate) fn init_pair<'a>(adapter: &'a Adapter, module: &str, config: &TrainConfig) -> Result<&'a LowRank> {
    let pair = adapter.modules().get(module).ok_or_else(|| TrainError::InitLacksModule {
        module: module.to_owned(),
        target_modules: config.target_modules.clone(),
    })?;
    let same_scale = (pair.scale() - config.scale()).abs() < 1e-9;
    if pair.rank() != config.rank || !same_scale {
        return Err(TrainError::InitShape {
            module: module.to_owned(),
            found: (pair.rank(), pair.scale()),
            rank: config.rank,
            alpha: config.alpha,
            scale: config.scale(),
        });
    }
    Ok(pair)
}
