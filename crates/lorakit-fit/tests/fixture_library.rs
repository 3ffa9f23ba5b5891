//! The fixture library of version 0.1 over pico: a router is fitted once, and unknown experts and other bases are refused.

#![allow(clippy::unwrap_used, clippy::panic)]

use lorakit_fit::router::{build_router, depends_on_task};
use lorakit_fit::{FitContext, FitError, MergeRecord, OpenLibrary, Reporter, TrainingHooks};
use lorakit_model::{Base, BaseOptions};
use lorakit_route::parse_router;
use lorakit_task::{Task, Tokenizer};
use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn pico() -> Base {
    Base::open(&repository("src/pico"), &BaseOptions::default()).unwrap()
}

/// Counts fits, and fails if anything cannot be written.
#[derive(Default)]
struct Fits(Cell<usize>);

impl Reporter for Fits {
    fn status(&self, text: &str) {
        assert!(text.contains("fitting to rows"), "{text}");
        self.0.set(self.0.get() + 1);
    }

    fn warn(&self, text: &str) {
        panic!("{text}");
    }

    fn training(&self) -> TrainingHooks<'_> {
        panic!("nothing is trained here");
    }
}

fn context<'a>(base: &'a Base, library: &'a OpenLibrary, fits: &'a Fits) -> FitContext<'a, 'a> {
    FitContext {
        base,
        library,
        tokenizer: &|| Ok(Tokenizer::open(&repository("src/pico"))?),
        tasks: &[],
        load_tasks: &|spec, _| Ok(Task::load(spec, None)?),
        seed: 0,
        reporter: fits,
    }
}

#[test]
fn a_cached_router_is_not_fitted_again() {
    let (base, folder) = (pico(), tempfile::tempdir().unwrap());
    copy(&repository("tests/fixtures/library_0.1"), folder.path());
    let library = OpenLibrary::open(folder.path(), &base, &[]).unwrap();
    assert_eq!(library.experts.names(), ["join_dash", "shift_up1"]);
    let fits = Fits::default();
    let context = context(&base, &library, &fits);
    let router = parse_router("cm:rows=2").unwrap();
    assert!(!depends_on_task(&context, &*router));
    for _ in 0..2 {
        let built = build_router(&context, &*router, None, None).unwrap();
        assert!((0..base.sites().len()).any(|site| built.patches.at(site).is_some()));
        assert_eq!(fits.0.get(), 1);
    }
}

#[test]
fn a_state_fitted_to_replaced_experts_is_not_that_of_the_new_ones() {
    let (base, folder) = (pico(), tempfile::tempdir().unwrap());
    copy(&repository("tests/fixtures/library_0.1"), folder.path());
    let opened = OpenLibrary::open(folder.path(), &base, &[]).unwrap();
    let before = opened.library.weights_sha256("join_dash").unwrap();
    // As another process does that trains it again.
    let (other, record) = (opened.library.adapter("shift_up1").unwrap(), opened.library.record("join_dash").unwrap());
    opened.library.replace("join_dash", &other, record.as_ref()).unwrap();
    assert_ne!(opened.library.weights_sha256("join_dash").unwrap(), before);
    assert_eq!(opened.weights_sha256("join_dash").unwrap(), before, "of what was read");
    let merged = MergeRecord::new("uniform".to_owned(), &opened.library, opened.experts.experts(), &[0.5, 0.5]);
    assert_eq!(merged.unwrap().experts[0].sha256, before);

    let (fits, router) = (Fits::default(), parse_router("cm:rows=2").unwrap());
    build_router(&context(&base, &opened, &fits), &*router, None, None).unwrap();
    let reopened = OpenLibrary::open(folder.path(), &base, &[]).unwrap();
    build_router(&context(&base, &reopened, &fits), &*router, None, None).unwrap();
    assert_eq!(fits.0.get(), 2);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, to).unwrap();
        }
    }
}

#[test]
fn a_router_of_a_task_needs_one() {
    let base = pico();
    let library = OpenLibrary::open(&repository("tests/fixtures/library_0.1"), &base, &[]).unwrap();
    let fits = Fits::default();
    let context = context(&base, &library, &fits);
    let router = parse_router("cat").unwrap();
    assert!(depends_on_task(&context, &*router));
    let Err(error) = build_router(&context, &*router, None, None) else { panic!("there is no task") };
    assert!(matches!(error, FitError::NoCurrentTask), "{error}");
}

#[test]
fn unknown_experts_and_other_bases_are_refused() {
    let root = repository("tests/fixtures/library_0.1");
    let base = pico();
    let one = OpenLibrary::open(&root, &base, &["shift_up1".to_owned()]).unwrap();
    assert_eq!(one.experts.names(), ["shift_up1"]);
    assert_eq!(one.seen([0]).into_iter().map(|task| task.name).collect::<Vec<_>>(), ["shift_up1"]);

    let error = OpenLibrary::open(&root, &base, &["absent".to_owned()]).unwrap_err();
    assert!(error.to_string().ends_with("no expert `absent`; it has `join_dash`, `shift_up1`"), "{error}");

    let other = Base::open(&repository("tests/fixtures/peft/mistral/base"), &BaseOptions::default()).unwrap();
    let error = OpenLibrary::open(&root, &other, &[]).unwrap_err();
    assert!(error.chain().contains("library_0.1"), "{}", error.chain());
}

/// Keeps what is reported.
#[derive(Default)]
struct Said(RefCell<Vec<String>>);

impl Reporter for Said {
    fn status(&self, text: &str) {
        self.0.borrow_mut().push(text.to_owned());
    }

    fn warn(&self, text: &str) {
        self.0.borrow_mut().push(text.to_owned());
    }

    fn training(&self) -> TrainingHooks<'_> {
        panic!("nothing is trained here");
    }
}

#[test]
fn fitted_weights_are_reported_under_the_router_s_name() {
    let (base, folder) = (pico(), tempfile::tempdir().unwrap());
    copy(&repository("tests/fixtures/library_0.1"), folder.path());
    let library = OpenLibrary::open(folder.path(), &base, &[]).unwrap();
    let tasks = Task::load("suite:skills/shift_up2", None).unwrap();
    let (said, fits) = (Said::default(), Fits::default());
    let context = FitContext { reporter: &said, ..context(&base, &library, &fits) };
    build_router(&context, &*parse_router("cat:steps=1,rows=2").unwrap(), Some(&tasks[0]), None).unwrap();
    let said = said.0.take();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said.iter().all(|text| text.starts_with("cat: ")), "{said:?}");
}

#[test]
fn rows_are_tokenized_once_for_a_fit() {
    let (base, folder) = (pico(), tempfile::tempdir().unwrap());
    let root = folder.path().join("library");
    copy(&repository("tests/fixtures/library_0.1"), &root);
    let library = OpenLibrary::open(&root, &base, &[]).unwrap();
    let task = |name: &str| {
        let path = folder.path().join(format!("{name}.jsonl"));
        let row = format!("{{\"input\": \"{}\", \"output\": \"b\"}}\n", "a".repeat(300));
        fs::write(&path, row.repeat(4)).unwrap();
        Task::load(path.to_str().unwrap(), None).unwrap().remove(0)
    };
    let tasks = ["join_dash", "shift_up1"].map(task);
    for router in ["retrieve:rows=2", "evidence:rows=2,temperature=0.1,fallback=base", "tp:rows=2", "cm:rows=2"] {
        let (said, fits) = (Said::default(), Fits::default());
        let context = FitContext { reporter: &said, tasks: &tasks, ..context(&base, &library, &fits) };
        build_router(&context, &*parse_router(router).unwrap(), None, None).unwrap();
        let said = said.0.take();
        assert_eq!(said.iter().filter(|text| text.contains("longer than the base's")).count(), 1, "{router}: {said:?}");
    }
}
