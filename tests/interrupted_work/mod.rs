//! Small trainings that tests interrupt, and the files that they leave.
#![allow(dead_code, reason = "every test file uses a part of this")]

use crate::binary::{command, run};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Tasks with their numbers of rows: experts finish at different steps, and train in two passes.
pub const ROWS: [(&str, usize); 4] = [("double", 40), ("reverse", 24), ("upper", 48), ("vowel", 32)];

const SETTINGS: [&str; 9] = [
    "num_epochs=2",
    "batch_size=4",
    "rank=2",
    "dropout=0.1",
    "learning_rate=1e-2",
    "eval_steps=3",
    "save_steps=1",
    "experts_per_pass=2",
    "max_length=48",
];

pub fn kills() -> usize {
    std::env::var("LORAKIT_KILLS").map_or(5, |text| text.parse().expect("LORAKIT_KILLS is a number"))
}

/// Reproducible random times at which to kill a process (splitmix64).
pub struct KillTimes(pub u64);

impl KillTimes {
    pub fn before(&mut self, end: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        end.mul_f64(((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64)
    }
}

/// The content of files by path within a folder, without hidden files.
pub type Files = BTreeMap<PathBuf, Vec<u8>>;

pub fn files(folder: &Path) -> Files {
    let mut found = Files::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(inner) = folders.pop() {
        for entry in fs::read_dir(&inner).into_iter().flatten().flatten() {
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if !hidden && entry.path().is_dir() {
                folders.push(entry.path());
            } else if !hidden {
                found.insert(entry.path().strip_prefix(folder).unwrap().to_owned(), fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

pub struct Work {
    pub folder: tempfile::TempDir,
    pub tasks: Vec<String>,
}

impl Work {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let task = |(name, rows): (&str, usize)| {
            let row = |i: usize| json!({ "input": format!("{name} {i}"), "output": format!("{}", (i * 7) % 31) });
            let path = folder.path().join(format!("{name}.json"));
            fs::write(&path, serde_json::to_string(&(0..rows).map(row).collect::<Vec<_>>()).unwrap()).unwrap();
            path.display().to_string()
        };
        Self { tasks: ROWS.map(task).into(), folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `train-experts` on all tasks into a library in the folder. Two threads, so that at a kill one may be ahead of
    /// the other.
    pub fn train(&self, library: &str) -> Vec<String> {
        self.train_on(2, library)
    }

    pub fn train_on(&self, threads: usize, library: &str) -> Vec<String> {
        let (threads, library) = (threads.to_string(), self.path(library).display().to_string());
        let mut words: Vec<String> =
            ["train-experts", "--threads", &threads, "--json", "--base", "pico", "--library"].map(str::to_owned).into();
        words.extend([library, "--tasks".to_owned()]);
        words.extend(self.tasks.iter().cloned());
        words.extend(SETTINGS.iter().flat_map(|setting| ["--set".to_owned(), (*setting).to_owned()]));
        words
    }

    /// Trains a library undisturbed, on one thread: the number of threads does not affect the result.
    pub fn trained(&self, library: &str) -> (Files, Duration) {
        let since = Instant::now();
        run(self.train_on(1, library)).ok();
        (files(&self.path(library).join("experts")), since.elapsed())
    }
}

pub fn start(words: &[String]) -> Child {
    command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Starts the command and kills it after `after`. Returns whether it was still running.
pub fn killed(words: &[String], after: Duration) -> bool {
    let mut child = start(words);
    std::thread::sleep(after);
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

/// The content of a library, without its runs.
pub fn products(library: &Path) -> Files {
    files(library).into_iter().filter(|(path, _)| !path.starts_with("runs")).collect()
}
