//! `library import` and `library export`: adapters from other programs, and Hugging Face repositories.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;

use binary::{Ran, command, outer_adapter, peft_fixture, run, shared};
use lorakit_adapter::Adapter;
use serde_json::Value;
use std::fs;
use std::path::Path;

fn assert_contains(message: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(message.contains(part), "`{part}` is not in: {message}"));
}

#[test]
#[ignore = "needs ../shared"]
fn pickled_adapters_are_imported_and_exported() {
    let adapters = shared("data/adapters/peft-regression");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let pickled = adapters.join("lora_opt-350m__0.6.1").display().to_string();
    let (library, hub) = (path("library"), path("hub"));
    run(["library", "add", "--library", &path("added"), &pickled]).ok();
    let added = run(["library", "import", "--library", &library, &format!("opt={pickled}"), "--json"]).json();
    assert_eq!((&added["added"][0]["name"], &added["added"][0]["modules"]), (&"opt".into(), &48.into()));
    run(["library", "check", "--library", &library]).ok();

    let arguments = ["library", "export", "--library", &library, "--out", &hub, "--license", "mit"];
    run(arguments).ok();
    let card = fs::read_to_string(folder.path().join("hub/opt/README.md")).unwrap();
    let front = "---\nbase_model: \"facebook/opt-350m\"\nbase_model_relation: adapter\nlibrary_name: peft\nlicense: \
                 \"mit\"\npipeline_tag: text-generation\ntags:\n- lora\n- peft\n- lorakit\n---\n";
    assert!(card.starts_with(front), "{card}");
    assert_contains(&card, &["# opt", "48 modules", "PeftModel.from_pretrained(base, \"opt\")"]);
    let weights = |root: &str| fs::read(folder.path().join(root).join("adapter_model.safetensors")).unwrap();
    assert_eq!(weights("hub/opt"), weights("library/experts/opt"));
    assert_contains(&run(arguments).failed(1), &["hub/opt", "not empty"]);
    run(["library", "import", "--library", &path("again"), &path("hub/opt")]).ok();
}

#[test]
fn damaged_experts_of_an_mttl_library_are_refused_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let (library, damaged) = (folder.path().join("library"), folder.path().join("mttl"));
    fs::create_dir(&damaged).unwrap();
    for file in ["a.ckpt", "a.meta", "b.ckpt"] {
        fs::write(damaged.join(file), "damaged").unwrap();
    }
    let good = peft_fixture("mistral").join("adapters/e0").display().to_string();
    let import = |options: &[&str]| {
        let fixed = ["library", "import", "--json", "--library", library.to_str().unwrap()];
        run(fixed.into_iter().chain([damaged.to_str().unwrap(), &good]).chain(options.iter().copied()))
    };
    assert_contains(
        &import(&[]).failed(1),
        &["2 of 3 adapters were refused", "  a: ", "a.meta", "  b: ", "no b.meta is next to it"],
    );
    let names = |of: &Value| of.as_array().unwrap().iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
    let report = import(&["--skip-refused"]).json();
    assert_eq!((names(&report["added"]), names(&report["refused"])), (vec!["e0".into()], vec!["a".into(), "b".into()]));
}

#[test]
fn exports_keep_records_without_paths() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let rows: Vec<Value> =
        (0..40).map(|at| serde_json::json!({ "input": format!("say {at}"), "output": "so" })).collect();
    fs::create_dir(path("secret-project")).unwrap();
    let task = path("secret-project/talk|er.json");
    fs::write(&task, serde_json::to_string(&rows).unwrap()).unwrap();
    let library = path("library");
    let fixed = ["train-experts", "--base", "pico", "--library", &library, "-q", "--tasks", &task];
    run(fixed.into_iter().chain(["--set", "max_steps=2", "--set", "eval_steps=0", "--set", "batch_size=2"])).ok();
    run(["library", "export", "--library", &library, "--out", &path("hub"), "talk|er"]).ok();
    let file = |name: &str| fs::read_to_string(folder.path().join("hub/talk|er").join(name)).unwrap();
    let (card, record) = (file("README.md"), file("expert.json"));
    assert_contains(&card, &["| talk\\|er | sha256 `", "## Training", "| rank | 4 |", "| seed | 0 |"]);
    assert!(!card.contains("base_model"), "pico is no repository: {card}");
    assert_contains(&record, &["\"path\": \"talk|er.json\""]);
    assert!(!record.contains("secret-project") && !card.contains("secret-project"), "{record}");
    // Importing it again gives the same expert.
    run(["library", "add", "--library", &path("back"), "--base", "pico", &path("hub/talk|er")]).ok();
    run(["library", "check", "--library", &path("back"), "--base", "pico"]).ok();
}

#[test]
fn exports_name_a_base_by_what_its_library_recorded() {
    let oracle = peft_fixture("mistral");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::create_dir_all(path("org/base")).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(oracle.join("base").join(file), folder.path().join("org/base").join(file)).unwrap();
    }
    let adapter = path("e");
    fs::create_dir(&adapter).unwrap();
    fs::copy(oracle.join("adapters/rs/adapter_model.safetensors"), format!("{adapter}/adapter_model.safetensors"))
        .unwrap();
    let config = fs::read(oracle.join("adapters/rs/adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["base_model_name_or_path"] = Value::Null;
    fs::write(format!("{adapter}/adapter_config.json"), config.to_string()).unwrap();
    let add = |library: &str, options: &[&str]| {
        let fixed = ["library", "add", "--library", library, "--base", "org/base", &adapter];
        let mut add = command(fixed.into_iter().chain(options.iter().copied()));
        Ran::from(add.current_dir(folder.path()).output().unwrap()).ok();
    };
    // Neither is in a folder from which the base's path would lead to it.
    let export = |library: &str, out: &str| {
        run(["library", "export", "--library", &path(library), "--out", &path(out)]).ok();
        let file = |name: &str| fs::read_to_string(folder.path().join(out).join("e").join(name)).unwrap();
        let config: Value = serde_json::from_str(&file("adapter_config.json")).unwrap();
        assert_eq!((&config["use_rslora"], &config["lora_alpha"]), (&true.into(), &8.into()));
        (file("README.md"), config["base_model_name_or_path"].as_str().map(str::to_owned))
    };
    add("plain", &[]);
    let (card, named) = export("plain", "of-plain");
    assert!(!card.contains("org/base") && named.is_none(), "{named:?} {card}");
    add("named", &["--base-name", "org/base"]);
    let (card, named) = export("named", "of-named");
    assert!(card.contains("base_model: \"org/base\""), "{card}");
    assert_eq!(named.as_deref(), Some("org/base"));

    // An earlier version did not record it: a folder near the library tells.
    let index = path("named/library.json");
    let mut keys: Value = serde_json::from_str(&fs::read_to_string(&index).unwrap()).unwrap();
    assert_eq!(keys["base"].as_object_mut().unwrap().remove("on_hub"), Some(true.into()));
    fs::write(&index, keys.to_string()).unwrap();
    let (card, named) = export("named", "of-earlier");
    assert!(!card.contains("org/base") && named.is_none(), "{named:?} {card}");
    fs::rename(path("org"), path("moved")).unwrap();
    assert_eq!(export("named", "of-moved").1.as_deref(), Some("org/base"));
}

#[test]
fn failed_imports_leave_no_library() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let import = |from: &str| run(["library", "import", "--library", &path("library"), &path(from)]).failed(1);
    assert_contains(&import("absent"), &["absent", "not a folder"]);
    fs::create_dir(path("empty")).unwrap();
    assert_contains(&import("empty"), &["empty", "adapter_config.json", "NAME.ckpt"]);
    fs::create_dir(path("half")).unwrap();
    fs::write(path("half/a.ckpt"), "").unwrap();
    assert_contains(&import("half"), &["a.ckpt", "a.meta"]);
    fs::write(path("half/a.meta"), b"\x80\x02cos\nsystem\nX\x04\0\0\0echo\x85R.").unwrap();
    assert_contains(&import("half"), &["a.meta", "zip"]);
    assert!(!Path::new(&path("library")).exists());
}

#[test]
fn clusters_in_mttl_format() {
    let oracle = peft_fixture("mistral");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let adapters = ["e0", "e1", "e2"].map(|name| oracle.join("adapters").join(name).display().to_string());
    let fixed = ["library", "add", "--library", &path("library")].map(str::to_owned);
    run(fixed.into_iter().chain(adapters)).ok();
    let (library, out) = (path("library"), path("clusters.json"));
    run(["cluster", "--library", &library, "-k", "2", "--format", "mttl", "--out", &out]).ok();
    let lists: std::collections::BTreeMap<String, Vec<String>> =
        serde_json::from_str(&fs::read_to_string(&out).unwrap()).unwrap();
    let members: std::collections::BTreeSet<&str> = lists.values().flatten().map(String::as_str).collect();
    assert_eq!((lists.len(), members), (2, ["e0", "e1", "e2"].into()));
}

#[test]
fn adapters_are_exported_for_llama_cpp() {
    let oracle = peft_fixture("mistral");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (library, out, base) = (path("library"), path("out"), oracle.join("base").display().to_string());
    let adapters = ["e0", "e1"].map(|name| oracle.join("adapters").join(name).display().to_string());
    run(["library", "add", "--library", &library, &adapters[0], &adapters[1]]).ok();
    let export = ["library", "export", "--library", &library, "--format", "gguf", "--out", &out];
    assert_contains(&run(export).failed(1), &["records no base", "--base"]);
    let exported = run(export.into_iter().chain(["--base", &base, "--experts", "e1", "--json"])).json();
    assert_eq!(exported["exported"][0]["file"], path("out/e1.gguf"));
    let bytes = fs::read(path("out/e1.gguf")).unwrap();
    let holds = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    assert_eq!((&bytes[..4], fs::read_dir(&out).unwrap().count()), (&b"GGUF"[..], 1));
    for text in ["general.architecture", "llama", "adapter.lora.alpha", "blk.0.attn_q.weight.lora_a"] {
        assert!(holds(text), "{text}");
    }
    let again = run(export.into_iter().chain(["--base", &base])).failed(1);
    assert_contains(&again, &["e1.gguf", "another --out"]);
}

#[test]
fn exported_gguf_adapters_are_added_as_they_were() {
    for (name, needs_base) in [("mistral", true), ("phi", false), ("gemma3", false), ("phi3", false), ("olmo2", false)]
    {
        let oracle = peft_fixture(name);
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let base = oracle.join("base").display().to_string();
        let e0 = oracle.join("adapters/e0").display().to_string();
        run(["library", "add", "--library", &path("library"), "--base", &base, &e0]).ok();
        run(["library", "export", "--library", &path("library"), "--format", "gguf", "--out", &path("out")]).ok();
        let file = path("out/e0.gguf");
        let add = ["library", "add", "--library", &path("back"), &file];
        match needs_base {
            true => assert_contains(&run(add).failed(1), &["e0.gguf", "attn_k", "--base"]),
            false => drop(run(add).ok()),
        }
        run(["library", "add", "--json", "--library", &path("given"), "--base", &base, &file]).ok();
        let read = |library: &str| Adapter::read(&folder.path().join(library).join("experts/e0")).unwrap();
        assert_eq!(read("given").modules(), read("library").modules(), "{name}");
        // The head counts that a library recorded will do.
        run(["library", "add", "--library", &path("given"), &format!("again={file}")]).ok();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf").display().to_string();
    fs::write(&file, "no GGUF").unwrap();
    let add =
        ["library", "add", "--library", &folder.path().join("library").display().to_string(), &file].map(str::to_owned);
    assert_contains(&run(add).failed(1), &["model.gguf", "not a GGUF file"]);
}

/// llama.cpp has no tensor for a head that is the embedding.
#[test]
fn adapters_of_a_tied_head_are_not_exported_for_llama_cpp() {
    for (name, tied) in [("mistral", true), ("llama", false)] {
        let base = peft_fixture(name).join("base").display().to_string();
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        outer_adapter(base.as_ref(), "lm_head").write(&folder.path().join("head")).unwrap();
        run(["library", "add", "--library", &path("library"), "--base", &base, &path("head")]).ok();
        let export = ["library", "export", "--library", &path("library"), "--format", "gguf", "--out", &path("out")];
        assert_contains(&run(export).failed(1), &["expert `head`", "`lm_head`", "--base"]);
        let with_base = run(export.into_iter().chain(["--base", &base]));
        if tied {
            assert_contains(&with_base.failed(1), &["expert `head`", "tied to its embedding", "--experts"]);
            assert!(!folder.path().join("out/head.gguf").exists());
        } else {
            with_base.ok();
            let bytes = fs::read(path("out/head.gguf")).unwrap();
            assert!(bytes.windows(20).any(|part| part == b"output.weight.lora_a"));
        }
    }
}

#[test]
fn settings_that_are_not_set_are_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let library = "tests/fixtures/library_0.1";
    let shown = run(["library", "show", "--library", library, "shift_up1"]).ok().stdout;
    assert!(shown.contains("learning_rate") && !shown.contains("null"), "{shown}");
    let out = folder.path().join("out");
    run(["library", "export", "--library", library, "--out", &out.display().to_string(), "shift_up1"]).ok();
    let card = std::fs::read_to_string(out.join("shift_up1/README.md")).unwrap();
    assert!(card.contains("| learning_rate |") && !card.contains("null"), "{card}");
}
