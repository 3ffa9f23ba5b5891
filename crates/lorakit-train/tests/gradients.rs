//! Gradients compared with finite differences, experts in shared passes with experts alone, and repeated runs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../../tests/differences/mod.rs"]
mod differences;
#[path = "../../../tests/gguf_converter/mod.rs"]
mod gguf_converter;
mod tiny_base;

use candle_core::{Tensor, Var};
use differences::difference_of_values;
use gguf_converter::{GgufModel, Types};
use lorakit_adapter::{Adapter, LowRank, Matrix};
use lorakit_format::rng::Key;
use lorakit_lora::Patches;
use lorakit_model::{Base, BaseOptions, TokenBatch};
use lorakit_task::Example;
use lorakit_train::backward::gradient_sinks::GradientSinks;
use lorakit_train::backward::layerwise::{LayerwiseBackward, LossBatch};
use lorakit_train::trainable::dropout::Dropout;
use lorakit_train::trainable::lora_stack::LoraStack;
use lorakit_train::{Activations, Gradients, Job, Pass, PassContext, TrainConfig};
use std::collections::BTreeMap;
use std::sync::Arc;

const BASES: [&str; 13] = [
    "mistral",
    "phi",
    "llama",
    "gemma3",
    "phi3",
    "olmo2",
    "qwen2",
    "qwen3",
    "gemma2",
    "granite",
    "smollm3",
    "t5",
    GROWING_QUERIES,
];

/// Ministral 3 with queries that grow from the fourth position on.
const GROWING_QUERIES: &str = "ministral3";

fn base(name: &str, trainable: bool) -> Base {
    let options = BaseOptions { trainable, ..BaseOptions::default() };
    if name == GROWING_QUERIES { growing_queries(&options) } else { tiny_base::base(name, &options) }
}

fn growing_queries(options: &BaseOptions) -> Base {
    let (from, folder) = (tiny_base::folder("mistral"), tempfile::tempdir().unwrap());
    let config = std::fs::read(from.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["model_type"] = "ministral3".into();
    config["rope_parameters"] = serde_json::json!({
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 4,
        "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(from.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    Base::open(folder.path(), options).unwrap()
}

fn settings(text: &str) -> TrainConfig {
    TrainConfig::from_toml(text, "test").unwrap()
}

fn example(seed: u64, prompt: usize, target: usize) -> Example {
    let mut stream = Key::new(seed, "ids").stream();
    let mut ids = |n| (0..n).map(|_| 3 + stream.below(28) as u32).collect::<Vec<_>>();
    Example::new(&ids(prompt), &ids(target))
}

/// An adapter of random, non-zero A and B on every module of the base.
fn random_adapter(base: &Base, seed: u64, rank: usize, scale: f64) -> Adapter {
    let pairs = base.modules().into_iter().map(|m| {
        let mut stream = Key::new(seed, "adapter").text(&m.path).stream();
        let mut values = |n: usize| (0..n).map(|_| 0.2 * (stream.uniform() - 0.5)).collect::<Vec<_>>();
        let a = Matrix::new(rank, m.input, values(rank * m.input)).unwrap();
        let b = Matrix::new(m.output, rank, values(rank * m.output)).unwrap();
        (m.path, LowRank::new(a, b, scale).unwrap())
    });
    Adapter::new(pairs.collect::<BTreeMap<_, _>>())
}

fn packed() -> (TokenBatch, Vec<f32>) {
    let mut packed = TokenBatch::default();
    for (expert, (prompt, target)) in [(5, 7), (9, 3), (2, 12)].into_iter().enumerate() {
        let row = example(expert as u64, prompt, target);
        packed.push(row.prompt(), row.target(), Some(expert / 2));
    }
    let weights = (0..packed.targets().len()).map(|i| 0.02 + 0.01 * (i % 5) as f32).collect();
    (packed, weights)
}

/// The weighted loss, summed in f64, without a graph.
fn loss(base: &Base, packed: &TokenBatch, patches: &Patches, weights: &[f32]) -> f64 {
    let nll: Vec<f32> = base.nll(packed, patches).unwrap().detach().to_vec1().unwrap();
    nll.iter().zip(weights).map(|(&l, &w)| f64::from(l) * f64::from(w)).sum()
}

/// Compares the gradient of each variable with the difference quotient along it.
fn assert_gradients(
    base: &Base,
    variables: &[(String, Var)],
    patches: &dyn Fn() -> (Patches, Option<GradientSinks>),
    activations: Activations,
    label: &str,
) {
    let (packed, weights) = packed();
    let mut gradients = Gradients::default();
    let plain: Vec<Var> = variables.iter().map(|(_, v)| v.clone()).collect();
    let (now, sinks) = patches();
    let batch = LossBatch { packed: &packed, patches: &now, weights: &weights, sinks: sinks.as_ref() };
    LayerwiseBackward { base, activations, variables: &plain }.accumulate(&batch, &mut gradients).unwrap();
    for (name, variable) in variables {
        let gradient = gradients.of(variable).unwrap().unwrap_or_else(|| panic!("{label}: no gradient for {name}"));
        let squared = f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        if squared < 1e-14 {
            panic!("{label}: the gradient of {name} is zero");
        }
        let before = variable.as_tensor().copy().unwrap();
        let step = 2e-3 / squared.sqrt();
        let moved = |by: f64| {
            variable.set(&(&before + (&gradient * by).unwrap()).unwrap()).unwrap();
            loss(base, &packed, &patches().0, &weights)
        };
        let slope = (moved(step) - moved(-step)) / (2.0 * step);
        variable.set(&before).unwrap();
        assert!((slope / squared - 1.0).abs() < 1e-2, "{label}: {name}: slope {slope}, squared gradient {squared}");
    }
}

/// Compares the gradients of adapters of a frozen base, in graphs and on tapes: untied in all linear modules, or tied in
/// those of attention.
fn assert_adapter_gradients(base: &Base, tie: bool, label: &str) {
    let (targets, activations) = match tie {
        false => ("all-linear", Activations::Kept),
        true => ("attention", Activations::Recomputed),
    };
    let settings = settings(&format!("rank = 3\nalpha = 5\ntarget_modules = '{targets}'\ntie_qkv = {tie}"));
    let inits: Vec<Option<Adapter>> = match tie {
        false => (0..2).map(|e| Some(random_adapter(base, e, 3, settings.scale()))).collect(),
        true => vec![None, None],
    };
    let stack = LoraStack::new(base, &inits, &settings, 1).unwrap();
    let parameters = stack.parameters().unwrap();
    let variables: Vec<(String, Var)> =
        parameters.iter().map(|p| (p.name().to_string(), p.variable().clone())).collect();
    for (name, variable) in variables.iter().filter(|(name, _)| name.ends_with(".B") && tie) {
        // B starts at zero, where A has no gradient.
        let mut stream = Key::new(3, name).stream();
        let values: Vec<f32> = (0..variable.elem_count()).map(|_| 0.2 * (stream.uniform() - 0.5)).collect();
        variable.set(&Tensor::from_vec(values, variable.shape(), base.device()).unwrap()).unwrap();
    }
    let graphs = || (stack.graph_patches(None).unwrap(), None);
    let tapes = || {
        let (patches, sinks) = stack.tape_patches(None).unwrap();
        (patches, Some(sinks))
    };
    assert_gradients(base, &variables, &graphs, activations, &format!("{label}, tied {tie}, in graphs"));
    assert_gradients(base, &variables, &tapes, activations, &format!("{label}, tied {tie}, on tapes"));
}

#[test]
fn gradients_of_every_trainable_tensor_match_finite_differences() {
    for name in BASES {
        let base = base(name, false);
        [false, true].into_iter().for_each(|tie| assert_adapter_gradients(&base, tie, name));
    }
}

/// Over weights in Q8_0 and F16: with the rows of queries and keys in llama.cpp's order, and as they are.
#[test]
fn gradients_over_a_quantized_base_match_finite_differences() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama", "gemma3"] {
        let file = folder.path().join(name).with_extension("gguf");
        GgufModel::of_folder(&tiny_base::folder(name), Types::Quantized).write(&file);
        let base = Base::open_gguf(&file, &BaseOptions::default()).unwrap();
        assert!(base.weight_types().iter().any(|weights| weights.name == "Q8_0"), "{name}");
        [false, true].into_iter().for_each(|tie| assert_adapter_gradients(&base, tie, &format!("{name} in GGUF")));
    }
}

#[test]
fn gradients_of_every_weight_of_a_trainable_base_match_finite_differences() {
    for name in BASES {
        let base = base(name, true);
        // A key bias adds the same to all scores of a query, so that softmax cancels it and its gradient is zero.
        let variables: Vec<_> =
            base.variables().iter().filter(|(name, _)| !name.ends_with("k_proj.bias")).cloned().collect();
        assert_gradients(&base, &variables, &|| (Patches::none(), None), Activations::Kept, name);
    }
}

/// Experts with non-zero values in all linear modules.
fn stack_of(base: &Base, experts: u64) -> LoraStack {
    let settings = settings("rank = 3\nalpha = 5\ntarget_modules = 'all-linear'");
    let inits: Vec<Option<Adapter>> =
        (0..experts).map(|e| Some(random_adapter(base, e, 3, settings.scale()))).collect();
    LoraStack::new(base, &inits, &settings, 1).unwrap()
}

/// With dropout, and an expert without rows.
#[test]
fn tapes_and_graphs_give_the_same_gradients() {
    for name in BASES {
        let base = base(name, false);
        let stack = stack_of(&base, 3);
        let (packed, weights) = packed();
        let keys: Arc<[[u8; 32]]> = (0..packed.len()).map(|row| [row as u8; 32]).collect();
        let dropout = Dropout::new(0.3, keys);
        let variables: Vec<Var> = stack.parameters().unwrap().iter().map(|p| p.variable().clone()).collect();
        let found = |patches: Patches, sinks: Option<GradientSinks>, activations| {
            let mut gradients = Gradients::default();
            let batch = LossBatch { packed: &packed, patches: &patches, weights: &weights, sinks: sinks.as_ref() };
            let backward = LayerwiseBackward { base: &base, activations, variables: &variables };
            let losses = backward.accumulate(&batch, &mut gradients).unwrap();
            let gradients: Vec<Vec<f32>> = variables
                .iter()
                .map(|v| gradients.of(v).unwrap().unwrap().flatten_all().unwrap().to_vec1().unwrap())
                .collect();
            (losses, gradients)
        };
        let (losses, gradients) = found(stack.graph_patches(Some(&dropout)).unwrap(), None, Activations::Kept);
        for activations in [Activations::Kept, Activations::Recomputed] {
            let (patches, sinks) = stack.tape_patches(Some(&dropout)).unwrap();
            let (own_losses, own) = found(patches, Some(sinks), activations);
            assert!(difference_of_values(&losses, &own_losses) < 1e-5);
            for (of_graph, of_tape) in gradients.iter().zip(&own) {
                let size = of_graph.iter().fold(0.0f32, |size, g| size.max(g.abs()));
                assert!(
                    size > 1e-4 && difference_of_values(of_graph, of_tape) < 1e-4 * size,
                    "{name}, {activations:?}"
                );
            }
        }
    }
}

/// Adapters in the last layer only: no layer below needs a gradient.
#[test]
fn adapters_in_the_last_layer_only_have_correct_gradients() {
    for name in BASES {
        let base = base(name, false);
        let last = base.layers() - 1;
        assert!(last > 0);
        let modules = base.sites().iter().filter(|site| site.layer == Some(last)).flat_map(|site| &site.projections);
        let modules: Vec<&str> = modules.map(|projection| projection.module.as_str()).collect();
        let settings = settings(&format!("rank = 3\nalpha = 5\ntarget_modules = '{}'", modules.join(",")));
        let stack = LoraStack::new(&base, &[None, None], &settings, 1).unwrap();
        let variables: Vec<(String, Var)> =
            stack.parameters().unwrap().iter().map(|p| (p.name().to_string(), p.variable().clone())).collect();
        // B starts at zero, where A has no gradient.
        for (name, variable) in variables.iter().filter(|(name, _)| name.ends_with(".B")) {
            let mut stream = Key::new(3, name).stream();
            let values: Vec<f32> = (0..variable.elem_count()).map(|_| 0.2 * (stream.uniform() - 0.5)).collect();
            variable.set(&Tensor::from_vec(values, variable.shape(), base.device()).unwrap()).unwrap();
        }
        let tapes = || {
            let (patches, sinks) = stack.tape_patches(None).unwrap();
            (patches, Some(sinks))
        };
        for activations in [Activations::Kept, Activations::Recomputed] {
            assert_gradients(&base, &variables, &tapes, activations, name);
        }
    }
}

#[test]
fn unsupported_layers_are_refused_by_tapes() {
    for (trainable, part) in [(true, "frozen weights"), (false, "in candle's graph")] {
        let base = base("mistral", trainable);
        let settings = settings("rank = 3\nalpha = 5");
        let stack = LoraStack::new(&base, &[None, None], &settings, 1).unwrap();
        let (packed, _) = packed();
        let (plan, h) = (base.plan(packed.sequences()), base.embed(packed.ids()).unwrap());
        let patches = stack.graph_patches(None).unwrap();
        let taped = base.taped(&plan, &patches).layer(0, &h, true);
        let message = taped.err().unwrap().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn losses_by_token_match_the_full_last_layer() {
    for name in BASES {
        let base = base(name, false);
        let stack = stack_of(&base, 2);
        let ((packed, _), patches) = (packed(), stack.graph_patches(None).unwrap());
        let values = |nll: candle_core::Result<Tensor>| nll.unwrap().detach().to_vec1::<f32>().unwrap();
        let (whole, by_token) = (values(base.nll(&packed, &patches)), values(base.nll_by_token(&packed, &patches)));
        assert_eq!(whole.len(), packed.targets().len());
        assert!(whole.iter().zip(&by_token).all(|(a, b)| (a - b).abs() < 1e-4), "{name}: {whole:?} {by_token:?}");
        let bare = values(base.nll(&packed, &Patches::none()));
        assert!(whole.iter().zip(&bare).any(|(a, b)| (a - b).abs() > 1e-2), "{name}: the adapters do nothing");
    }
}

#[test]
fn rows_without_a_target_have_no_loss() {
    for name in BASES {
        let base = base(name, false);
        let row = Example::new(example(1, 5, 2).prompt(), &[]);
        assert_eq!(lorakit_train::example_losses_by_token(&base, &Patches::none(), &[(0, &row)], 64).unwrap(), [0.0]);
    }
}

fn job(name: &str, seed: u64) -> Job {
    let rows = |from: u64, n: u64| {
        (from..from + n).map(|i| example(seed * 1000 + i, 4 + (i % 7) as usize, 2 + (i % 5) as usize)).collect()
    };
    Job { validation: rows(100, 8), ..Job::new(name, rows(0, 40)) }
}

fn trained(base: &Base, jobs: &[Job], settings: &TrainConfig, batch_tokens: usize) -> Vec<Adapter> {
    let mut pass = Pass::new(PassContext { base, config: settings, seed: 7, batch_tokens }, jobs).unwrap();
    while pass.steps_done() < pass.steps() {
        pass.step().unwrap();
    }
    (0..jobs.len()).map(|e| pass.adapter(e).unwrap()).collect()
}

fn largest_difference(a: &Adapter, b: &Adapter) -> f32 {
    assert_eq!(a.modules().keys().collect::<Vec<_>>(), b.modules().keys().collect::<Vec<_>>());
    let values = |adapter: &Adapter| -> Vec<f32> {
        let matrices = adapter.modules().values().flat_map(|pair| [pair.a(), pair.b()]);
        matrices.flat_map(|matrix| matrix.values().into_owned()).collect()
    };
    difference_of_values(&values(a), &values(b))
}

#[test]
fn an_expert_is_the_same_trained_alone_or_with_others() {
    for name in ["mistral", "phi"] {
        let base = base(name, false);
        let settings = settings(
            "max_steps = 8\nlearning_rate = 5e-3\ndropout = 0.1\nbatch_size = 4\ngradient_accumulation_steps = 2\nwarmup_ratio = 0.1\neval_steps = 4",
        );
        let jobs = [job("one", 1), job("two", 2), job("three", 3)];
        let together = trained(&base, &jobs, &settings, 100);
        for (job, together) in jobs.iter().zip(&together) {
            let alone = trained(&base, std::slice::from_ref(job), &settings, 1000);
            let difference = largest_difference(&alone[0], together);
            assert!(difference < 1e-3, "{name}, {}: {difference}", job.name);
            assert!(alone[0].norm() > 1e-3, "{name}: nothing was learned");
        }
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let again = pool.install(|| trained(&base, &jobs, &settings, 100));
            for (first, second) in together.iter().zip(&again) {
                assert_eq!(
                    largest_difference(first, second),
                    0.0,
                    "the same seed gives the same bytes, on any threads"
                );
            }
        }
    }
}

#[test]
fn recomputed_activations_give_the_same_experts() {
    let base = base("mistral", false);
    let kept = settings("max_steps = 4\nlearning_rate = 5e-3\nbatch_size = 4");
    let recomputed = TrainConfig { gradient_checkpointing: true, ..kept.clone() };
    let jobs = [job("one", 1)];
    let difference =
        largest_difference(&trained(&base, &jobs, &kept, 500)[0], &trained(&base, &jobs, &recomputed, 500)[0]);
    assert_eq!(difference, 0.0);
}
