//! Runs the binary and locates reference data.
#![allow(dead_code, reason = "every test file uses a part of this")]

use lorakit_adapter::{Adapter, AdapterMetadata, LowRank, Matrix};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A finished run.
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// Its stdout.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
}

/// The command `lorakit` with `arguments`.
pub fn command<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lorakit"));
    command.args(arguments);
    command
}

/// Runs `lorakit` with `arguments`.
pub fn run<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Ran {
    command(arguments).output().unwrap().into()
}

impl From<Output> for Ran {
    fn from(Output { status, stdout, stderr }: Output) -> Self {
        Self {
            code: status.code().unwrap_or_else(|| panic!("ended by {status}")),
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
        }
    }
}

/// Runs `lorakit` with whitespace-separated arguments.
pub fn words(text: &str) -> Ran {
    run(text.split_whitespace())
}

impl Ran {
    /// Asserts that the run succeeded.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// The JSON output of a run that must have succeeded.
    pub fn json(self) -> Value {
        let ran = self.ok();
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stdout))
    }

    /// The error message of a run that must have failed with `code`.
    pub fn failed(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "", "a failed run prints nothing to stdout");
        self.stderr
    }
}

/// A path below `../shared`, which tests that are ignored by default need.
pub fn shared(path: &str) -> PathBuf {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    assert!(found.exists(), "{} is absent; this test needs the reference data in ../shared", found.display());
    found
}

/// A tiny random base with adapters and PEFT's results: one of [`PEFT_FIXTURES`] or [`SMALL_PEFT_FIXTURES`].
pub fn peft_fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft").join(name)
}

/// The names of all [`peft_fixture`]s.
pub const PEFT_FIXTURES: [&str; 6] = ["mistral", "phi", "llama", "gemma3", "phi3", "olmo2"];

/// The names of those with one adapter, `rs`, and without results of routers, merges and training.
pub const SMALL_PEFT_FIXTURES: [&str; 8] =
    ["qwen2", "qwen3", "gemma2", "granite", "smollm3", "olmo3", "mistral3", "granite4"];

/// A larger reference base in `../shared`, or in a folder that `peft_oracle.py` wrote with another seed and
/// `LORAKIT_ORACLES` names: one of [`SHARED_ORACLES`].
pub fn shared_oracle(name: &str) -> PathBuf {
    let other = std::env::var("LORAKIT_ORACLES").map(|folder| PathBuf::from(folder).join(name));
    if let Some(other) = other.ok().filter(|folder| folder.exists()) {
        return other;
    }
    let newer = shared("oracles/peft_modern").join(name);
    if newer.exists() { newer } else { shared("oracles/peft").join(name) }
}

/// The names of all [`shared_oracle`]s.
pub const SHARED_ORACLES: [&str; 15] = [
    "mistral", "phi", "window", "llama3", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "phi3long", "olmo2", "granite",
    "smollm3", "yarn", "biased",
];

/// An adapter of rank 1 of the head or the embedding, by its module, of the base in a folder.
pub fn outer_adapter(base: &Path, module: &str) -> Adapter {
    let config: Value = serde_json::from_slice(&std::fs::read(base.join("config.json")).unwrap()).unwrap();
    let hidden = if config["model_type"] == "t5" { "d_model" } else { "hidden_size" };
    let [hidden, vocabulary] = [hidden, "vocab_size"].map(|key| config[key].as_u64().unwrap() as usize);
    let is_head = module == "lm_head";
    let (input, output) = if is_head { (hidden, vocabulary) } else { (vocabulary, hidden) };
    let [a, b] = [input, output].map(|count| (0..count).map(|i| ((i % 7) as f32 - 3.0) * 0.1).collect());
    let update = LowRank::new(Matrix::new(1, input, a).unwrap(), Matrix::new(output, 1, b).unwrap(), 1.0).unwrap();
    let embeddings = if is_head { BTreeSet::new() } else { [module.to_owned()].into() };
    Adapter::new([(module.to_owned(), update)].into())
        .with_metadata(AdapterMetadata { embeddings, ..AdapterMetadata::default() })
}

/// Asserts that a message contains all parts.
pub fn assert_contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

/// Copies an adapter of a fixture, with changed keys of its configuration.
pub fn copy_adapter(from: &Path, to: &Path, keys: Value) {
    std::fs::create_dir_all(to).unwrap();
    std::fs::copy(from.join("adapter_model.safetensors"), to.join("adapter_model.safetensors")).unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    keys.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
    std::fs::write(to.join("adapter_config.json"), config.to_string()).unwrap();
}
