//! Mutations of a small corpus are given to every reader of untrusted input: no panic, no runaway memory or time, and
//! nothing outside the folder is touched. The inputs are the same in every run.
//!
//! `LORAKIT_FUZZ=100000 cargo test --release --test malformed_input -- --nocapture` runs that many mutations per
//! entry; `tests/fuzz` has the same entries for cargo-fuzz.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

#[path = "fuzz/entries.rs"]
mod entries;

use lorakit_adapter::{Adapter, MttlExpert};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Memory limit per input; the longest file here is 64 KiB.
const MEMORY: usize = 1 << 27;
/// Memory limit for templates, which may render 64 MiB of text that is then copied several times.
const TEMPLATE_MEMORY: usize = 1 << 30;
/// Time limit per input: generous, since machines are shared; it catches endless loops.
const SECONDS: f64 = 60.0;

/// Maximum length of an input.
const LENGTH: usize = 1 << 16;

/// The system allocator, with a count of allocated bytes.
struct Counted;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is forwarded to the system allocator.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller upholds the contract of the forwarded call.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller upholds the contract of the forwarded call.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Reproducible random numbers (splitmix64).
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Fragments that mutations insert.
const PIECES: [&[u8]; 40] = [
    b"",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\"",
    b"\\",
    b"'",
    b"{",
    b"}",
    b"[",
    b"]",
    b"[[",
    b"{{",
    b"}}",
    b"{%",
    b"%}",
    b",",
    b":",
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"null",
    b"true",
    b"18446744073709551616",
    b"4294967295",
    b"\\u0000",
    b"\\ud800",
    b"..",
    b"/../",
    b"/etc/passwd",
    b"(a+)+$",
    b"(?=",
    b"(?:.*)*",
    b"\\1",
    b"{1000000}",
    b"\xf0\x9f\xa6\x80",
    b"_niter_",
    b" ~ n * 999999 ",
];

/// One mutation: bytes are flipped, removed, repeated, inserted, or copied from another input.
fn mutate(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], draws: &mut Draws) {
    let at = draws.below(bytes.len() + 1);
    let end = (at + 1 + draws.below(24)).min(bytes.len());
    match draws.below(8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << draws.below(8),
        1 if at < bytes.len() => bytes[at] = draws.next() as u8,
        2 if at < end => drop(bytes.drain(at..end)),
        3 if at < end => {
            let part = bytes[at..end].repeat(1 + draws.below(40));
            bytes.splice(at..at, part);
        }
        4 => bytes.truncate(at),
        5 => {
            let other = &corpus[draws.below(corpus.len())];
            let from = draws.below(other.len());
            let to = (from + draws.below(64)).min(other.len());
            bytes.splice(at..at, other[from..to].iter().copied());
        }
        _ => drop(bytes.splice(at..at, PIECES[draws.below(PIECES.len())].iter().copied())),
    }
    bytes.truncate(LENGTH);
}

fn corpus_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name)
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<_> = fs::read_dir(corpus_folder(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

#[test]
fn intact_corpus_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["plain.pkl", "half.pkl"] {
        entries::pickle(folder.path(), &fs::read(corpus_folder("pickle").join(name)).unwrap());
        Adapter::read(&folder.path().join("pickled")).unwrap();
    }
    entries::mttl_expert(folder.path(), &fs::read(corpus_folder("mttl_expert").join("weights.pkl")).unwrap());
    MttlExpert::read(folder.path(), "weights").unwrap();
    // The weights are elsewhere: the record is read, and then its weights are missing.
    entries::mttl_expert(folder.path(), &fs::read(corpus_folder("mttl_expert").join("about.pkl")).unwrap());
    let error = format!("{:#}", MttlExpert::read(folder.path(), "about").unwrap_err());
    assert!(error.contains("about.ckpt"), "{error}");
}

#[test]
fn mutated_input_does_no_harm() {
    let most: usize = std::env::var("LORAKIT_FUZZ").map_or(400, |text| text.parse().expect("a number"));
    let first: u64 = std::env::var("LORAKIT_FUZZ_SEED").map_or(0, |text| text.parse().expect("a number"));
    // Panics are reported below with the input that caused them.
    std::panic::set_hook(Box::new(|_| {}));
    let mut harmed = Vec::new();
    for (name, entry) in entries::ENTRIES {
        let corpus = corpus(name);
        let allowed = if matches!(name, "template" | "task_file") { TEMPLATE_MEMORY } else { MEMORY };
        let (mut draws, since, mut longest, mut largest) = (Draws(first), Instant::now(), 0.0f64, 0);
        for round in 0..corpus.len() + most {
            let mut bytes = corpus[round % corpus.len()].clone();
            if round >= corpus.len() {
                (0..=draws.below(6)).for_each(|_| mutate(&mut bytes, &corpus, &mut draws));
            }
            let (before, started) = (NOW.load(Ordering::Relaxed), Instant::now());
            MOST.store(before, Ordering::Relaxed);
            let outcome = catch_unwind(AssertUnwindSafe(|| entries::in_own_folder(entry, &bytes)));
            let memory = MOST.load(Ordering::Relaxed).saturating_sub(before);
            let seconds = started.elapsed().as_secs_f64();
            (longest, largest) = (longest.max(seconds), largest.max(memory));
            if outcome.is_err() || memory > allowed || seconds > SECONDS {
                let what = format!("panic: {}, {memory} bytes of memory, {seconds:.1} s", outcome.is_err());
                harmed.push(format!("{name}: {what}: {:?}", String::from_utf8_lossy(&bytes)));
            }
        }
        let seconds = since.elapsed().as_secs_f64();
        let (inputs, mib) = (corpus.len() + most, largest as f64 / (1 << 20) as f64);
        eprintln!("{name}: {inputs} inputs in {seconds:.1} s, the longest {longest:.3} s, the largest {mib:.1} MiB");
    }
    drop(std::panic::take_hook());
    assert!(harmed.is_empty(), "{} inputs failed:\n{}", harmed.len(), harmed.join("\n"));
}
