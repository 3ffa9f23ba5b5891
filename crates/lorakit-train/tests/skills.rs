//! Skills and their routing: one-hot routing, the mixing rule, gradients.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../../tests/differences/mod.rs"]
mod differences;
mod tiny_base;

use candle_core::Var;
use differences::difference_of_values;
use lorakit_adapter::{Adapter, Library, LowRank, Matrix, TaskRecord};
use lorakit_format::rng::Key;
use lorakit_lora::Patches;
use lorakit_model::{Base, BaseOptions, TokenBatch};
use lorakit_task::Example;
use lorakit_train::backward::layerwise::{LayerwiseBackward, LossBatch};
use lorakit_train::trainable::lora_stack::LoraStack;
use lorakit_train::{
    Activations, Gradients, Job, Pass, PassContext, RoutingSpec, RowTasks, SkillDims, SkillStack, SkillTraining,
    StepInterval, TrainConfig, TrainEvent, Trainer, config_for_adapters, init_skills, routing_store,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

fn base(name: &str) -> Base {
    tiny_base::base(name, &BaseOptions::default())
}

/// A skill of random A and B on every module.
fn skill(base: &Base, seed: u64) -> Adapter {
    let pairs = base.modules().into_iter().map(|m| {
        let mut stream = Key::new(seed, "adapter").text(&m.path).stream();
        let mut values = |n: usize| (0..n).map(|_| 0.2 * (stream.uniform() - 0.5)).collect::<Vec<_>>();
        let a = Matrix::new(3, m.input, values(3 * m.input)).unwrap();
        let b = Matrix::new(m.output, 3, values(m.output * 3)).unwrap();
        (m.path, LowRank::new(a, b, 5.0 / 3.0).unwrap())
    });
    Adapter::new(pairs.collect::<BTreeMap<_, _>>())
}

fn tasks(n: usize) -> Vec<String> {
    (0..n).map(|task| format!("task {task}")).collect()
}

fn stack(base: &Base, skills: &[Adapter], splits: usize, tasks_: usize) -> SkillStack {
    let settings = config_for_adapters(skills, &TrainConfig::default()).unwrap();
    SkillStack::new(base, skills.to_vec(), RoutingSpec { tasks: &tasks(tasks_), splits }, &settings, 1).unwrap()
}

/// Logits by task, split and skill, the same at every site.
fn set(stack: &SkillStack, at: impl Fn(usize, usize, usize) -> f32) {
    let SkillDims { count, splits } = stack.dims();
    let given = stack.logits().unwrap().into_iter().map(|(key, matrix)| {
        let values = (0..matrix.rows())
            .flat_map(|task| (0..splits * count).map(move |i| (task, i / count, i % count)))
            .map(|(task, split, skill)| at(task, split, skill));
        (key, Matrix::new(matrix.rows(), count * splits, values.collect()).unwrap())
    });
    stack.set_logits(&given.collect()).unwrap();
}

fn example(seed: u64, prompt: usize, target: usize) -> Example {
    let mut stream = Key::new(seed, "ids").stream();
    let mut ids = |n| (0..n).map(|_| 3 + stream.below(28) as u32).collect::<Vec<_>>();
    Example::new(&ids(prompt), &ids(target))
}

/// Rows of the tasks 2, 0 and 2.
fn packed() -> (TokenBatch, Vec<f32>) {
    let mut packed = TokenBatch::default();
    for (task, (prompt, target)) in [(2, (5, 7)), (0, (9, 3)), (2, (2, 12))] {
        let row = example(prompt as u64, prompt, target);
        packed.push(row.prompt(), row.target(), Some(task));
    }
    let weights = (0..packed.targets().len()).map(|i| 0.02 + 0.01 * (i % 5) as f32).collect();
    (packed, weights)
}

fn nll(base: &Base, packed: &TokenBatch, patches: &Patches) -> Vec<f32> {
    base.nll(packed, patches).unwrap().to_vec1().unwrap()
}

/// The largest difference of two adapters' deltas, relative to the largest value.
fn deltas_apart(a: &Adapter, b: &Adapter) -> f32 {
    assert_eq!(a.modules().keys().collect::<Vec<_>>(), b.modules().keys().collect::<Vec<_>>());
    let [a, b] = [a, b].map(|adapter| adapter.modules().values().flat_map(|pair| pair.delta()).collect::<Vec<f32>>());
    difference_of_values(&a, &b) / difference_of_values(&b, &vec![0.0; b.len()])
}

#[test]
fn one_hot_routing_selects_a_skill() {
    for (name, splits) in [("mistral", 1), ("phi", 1), ("mistral", 2)] {
        let base = base(name);
        let skills: Vec<Adapter> = (0..4).map(|seed| skill(&base, seed)).collect();
        let stack = stack(&base, &skills, splits, 3);
        set(&stack, |task, _, skill| if skill == task + 1 { 20.0 } else { -60.0 });
        for task in 0..3 {
            let off = deltas_apart(&stack.task_adapter(task).unwrap(), &skills[task + 1]);
            assert!(off < 1e-5, "{name}, {splits} splits, task {task}: {off}");
        }
    }
}

#[test]
fn a_task_adapter_equals_the_patches_of_its_rows() {
    for (name, splits) in [("mistral", 1), ("phi", 2), ("mistral", 4)] {
        let base = base(name);
        let skills: Vec<Adapter> = (0..3).map(|seed| skill(&base, seed)).collect();
        let stack = stack(&base, &skills, splits, 3);
        set(&stack, |task, split, skill| ((task * 7 + split * 3 + skill * 5) % 4) as f32 - 1.5);
        let mixed: Vec<Option<Adapter>> = (0..3).map(|task| Some(stack.task_adapter(task).unwrap())).collect();
        let settings = config_for_adapters(&skills, &TrainConfig::default()).unwrap();
        let plain = LoraStack::new(&base, &mixed, &settings, 0).unwrap();
        let (packed, _) = packed();
        let (found, expected) =
            (nll(&base, &packed, &stack.patches(None)), nll(&base, &packed, &plain.graph_patches(None).unwrap()));
        assert!(
            difference_of_values(&found, &expected) < 1e-4,
            "{name}, {splits} splits: {}",
            difference_of_values(&found, &expected)
        );
        assert!(
            difference_of_values(&found, &nll(&base, &packed, &Patches::none())) > 1e-2,
            "the skills must have an effect"
        );
    }
}

#[test]
fn the_mixing_rule_matches_the_papers_formula() {
    let base = base("mistral");
    let skills: Vec<Adapter> = (0..2).map(|seed| skill(&base, seed)).collect();
    let stack = stack(&base, &skills, 2, 1);
    let logits = |split: usize, skill: usize| [[0.3f64, -1.0], [2.0, 0.5]][split][skill];
    set(&stack, |_, split, skill| logits(split, skill) as f32);
    let weight = |split: usize, skill: usize| {
        let sigmoid = |skill| 1.0 / (1.0 + (-logits(split, skill)).exp());
        sigmoid(skill) / (sigmoid(0) + sigmoid(1) + 1e-8)
    };
    for (module, found) in stack.task_adapter(0).unwrap().modules() {
        let pairs = [&skills[0].modules()[module], &skills[1].modules()[module]];
        let (input, output) = (found.input(), found.output());
        let of = |values: [&[f32]; 2], at: usize, split: usize| -> f32 {
            (0..2).map(|skill| weight(split, skill) * f64::from(values[skill][at])).sum::<f64>() as f32
        };
        let (a, b) = (pairs.map(|pair| pair.a().values()), pairs.map(|pair| pair.b().values()));
        let a: Vec<f32> = (0..3 * input).map(|at| of([&a[0], &a[1]], at, at % input / (input / 2))).collect();
        let b: Vec<f32> = (0..3 * output).map(|at| of([&b[0], &b[1]], at, at / 3 / (output / 2))).collect();
        assert!(
            difference_of_values(&found.a().values(), &a) < 1e-6
                && difference_of_values(&found.b().values(), &b) < 1e-6,
            "{module}"
        );
    }
}

#[test]
fn gradients_of_skills_and_routing_match_finite_differences() {
    for (name, splits, activations) in [("mistral", 1, Activations::Kept), ("phi", 2, Activations::Recomputed)] {
        let base = base(name);
        let skills: Vec<Adapter> = (0..3).map(|seed| skill(&base, seed)).collect();
        let stack = stack(&base, &skills, splits, 3);
        set(&stack, |task, split, skill| ((task + 2 * split + skill * 5) % 4) as f32 - 1.5);
        let (packed, weights) = packed();
        let named: Vec<(String, Var)> = stack.skill_variables().into_iter().chain(stack.routing_variables()).collect();
        let variables: Vec<Var> = named.iter().map(|(_, variable)| variable.clone()).collect();
        let mut gradients = Gradients::default();
        let patches = stack.patches(None);
        let batch = LossBatch { packed: &packed, patches: &patches, weights: &weights, sinks: None };
        let backward = LayerwiseBackward { base: &base, activations, variables: &variables };
        backward.accumulate(&batch, &mut gradients).unwrap();
        let loss = || {
            let nll = nll(&base, &packed, &stack.patches(None));
            nll.iter().zip(&weights).map(|(&l, &w)| f64::from(l) * f64::from(w)).sum::<f64>()
        };
        for (name, variable) in &named {
            let gradient = gradients.of(variable).unwrap().unwrap_or_else(|| panic!("no gradient for {name}"));
            let squared = f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
            assert!(squared > 1e-14, "the gradient of {name} is zero");
            if name.ends_with("routing") {
                let rows: Vec<Vec<f32>> = gradient.to_vec2().unwrap();
                assert!(rows[1].iter().all(|value| *value == 0.0), "{name}: a task without rows");
            }
            let before = variable.as_tensor().copy().unwrap();
            // The loss depends weakly on the routing: a small step would be lost in rounding.
            let step = if name.ends_with("routing") { 5e-2 } else { 2e-3 } / squared.sqrt();
            let moved = |by: f64| {
                variable.set(&(&before + (&gradient * by).unwrap()).unwrap()).unwrap();
                loss()
            };
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            variable.set(&before).unwrap();
            assert!((slope / squared - 1.0).abs() < 2e-2, "{name}: slope {slope}, squared gradient {squared}");
        }
    }
}

/// A job of two tasks that differ in the first token of their prompts, and the task of each row.
fn job() -> (Job, Vec<usize>) {
    let row = |i: u64| {
        let mut row = example(i % 6, 4 + (i % 3) as usize, 3);
        row.tokens[0] = 3 + (i % 2) as u32;
        row
    };
    let train: Vec<Example> = (0..30).map(row).collect();
    let row_tasks = (0..30).map(|i| i % 2).collect();
    (Job::new("poly", train), row_tasks)
}

#[test]
fn skills_learn_and_differ_and_one_seed_gives_one_result() {
    let base = base("mistral");
    let settings = TrainConfig {
        learning_rate: 1e-2,
        max_steps: Some(60),
        batch_size: 6,
        max_grad_norm: 1.0,
        dropout: 0.05,
        ..TrainConfig::default()
    };
    let train = |splits| {
        let (job, row_tasks) = job();
        let skills = init_skills(&base, &settings, 3, 7).unwrap();
        let stack = SkillStack::new(&base, skills, RoutingSpec { tasks: &tasks(2), splits }, &settings, 7).unwrap();
        let rows = RowTasks { train: row_tasks, validation: Vec::new() };
        let mut pass =
            Pass::skills(PassContext { base: &base, config: &settings, seed: 7, batch_tokens: 64 }, &job, stack, rows)
                .unwrap();
        while pass.steps_done() < pass.steps() {
            pass.step().unwrap();
        }
        let losses = &pass.progress()[0].losses;
        assert!(losses[59] < 0.8 * losses[0], "{losses:?}");
        let stack = pass.skill_stack().unwrap();
        let skills: Vec<Adapter> = (0..3).map(|skill| stack.skill(skill).unwrap()).collect();
        (skills, stack.logits().unwrap())
    };
    for splits in [1, 4] {
        let (skills, logits) = train(splits);
        assert!(deltas_apart(&skills[0], &skills[1]) > 0.1, "skills must differ");
        let site = &logits["0.qkv"].values().into_owned();
        assert!(site.iter().any(|logit| logit.abs() > 0.1), "routing must be trained: {site:?}");
        let (again, same) = train(splits);
        assert_eq!(
            skills.iter().map(Adapter::modules).collect::<Vec<_>>(),
            again.iter().map(Adapter::modules).collect::<Vec<_>>()
        );
        assert_eq!(logits, same);
    }
}

#[test]
fn an_interrupted_run_ends_with_the_same_bytes() {
    let base = base("mistral");
    let settings = TrainConfig {
        learning_rate: 1e-2,
        max_steps: Some(12),
        batch_size: 6,
        eval_steps: Some(StepInterval::Steps(4)),
        save_steps: StepInterval::NEVER,
        ..TrainConfig::default()
    };
    let work = tempfile::tempdir().unwrap();
    let train = |name: &str, stop_after: Option<usize>| {
        let library = Library::open_or_create(&work.path().join(name), None).unwrap();
        let (mut job, row_tasks) = job();
        job.tasks = tasks(2).into_iter().map(|name| TaskRecord { name, ..TaskRecord::default() }).collect();
        job.validation = job.train[..6].to_vec();
        let rows = RowTasks { validation: row_tasks[..6].to_vec(), train: row_tasks };
        let plan = SkillTraining { dims: SkillDims { count: 3, splits: 2 }, tasks: rows };
        let stop = AtomicBool::new(false);
        let (base, config) = (&base, &settings);
        let trainer = Trainer { base, library: &library, config, seed: 3, restart: false, part: None, stop: &stop };
        let mut watch = |event: TrainEvent| {
            if let TrainEvent::Step { step, .. } = event
                && Some(step.step) == stop_after
            {
                stop.store(true, Ordering::Relaxed);
            }
        };
        let summary = trainer.train_skills(&plan, job, &mut watch).unwrap();
        (library, summary)
    };
    let (straight, summary) = train("straight", None);
    assert_eq!(summary.trained, ["poly"]);
    assert!(train("halting", Some(7)).1.stopped);
    let (halting, summary) = train("halting", None);
    assert_eq!(summary.trained, ["poly"]);
    assert_eq!(train("halting", None).1.finished, ["poly"]);
    for skill in ["poly_0", "poly_1", "poly_2"] {
        assert_eq!(straight.weights_sha256(skill).unwrap(), halting.weights_sha256(skill).unwrap());
    }
    let routing = |library| routing_store::read(library, "poly").unwrap().unwrap();
    assert_eq!(routing(&straight).logits, routing(&halting).logits);
    assert_eq!((routing(&straight).tasks, routing(&straight).splits), (tasks(2), 2));
}

#[test]
fn invalid_skills_are_refused_by_name() {
    let base = base("mistral");
    let skills: Vec<Adapter> = (0..2).map(|seed| skill(&base, seed)).collect();
    let settings = config_for_adapters(&skills, &TrainConfig::default()).unwrap();
    let odd = SkillStack::new(&base, skills.clone(), RoutingSpec { tasks: &tasks(1), splits: 7 }, &settings, 1);
    assert!(odd.err().unwrap().to_string().contains("cannot be split in 7"));
    let mut modules = skills[1].modules().clone();
    modules.pop_first();
    let lacking = SkillStack::new(
        &base,
        vec![skills[0].clone(), Adapter::new(modules)],
        RoutingSpec { tasks: &tasks(1), splits: 1 },
        &settings,
        1,
    );
    assert!(lacking.err().unwrap().to_string().contains("has no module"));
}
