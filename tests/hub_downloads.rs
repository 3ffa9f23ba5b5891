//! The Hub: downloads, its cache and its messages, against a local server that answers as the Hub does.
#![allow(clippy::unwrap_used)]

mod binary;
mod hub_server;

use binary::{assert_contains, command, run};
use hub_server::{Answer, Behavior, COMMIT, HubServer, LocalRepository, info, pico_folder, with};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const NEWER: &str = "89abcdef0123456789abcdef0123456789abcdef";

#[test]
fn an_adapter_given_as_a_base_is_refused_with_its_base() {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("adapter");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("adapter_config.json"), r#"{"base_model_name_or_path": "acme/tiny"}"#).unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), "none").unwrap();
    let server = HubServer::of(vec![LocalRepository::model("acme/adapter", COMMIT, &folder)]);
    let home = work.path().join("home");
    let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())];
    let message = info("hub:acme/adapter", &settings).failed(1);
    assert_contains(&message, &["hub:acme/adapter", "an adapter, not a base", "--base hub:acme/tiny"]);
}

#[test]
fn a_base_is_downloaded_into_the_cache_of_huggingface_hub() {
    let work = tempfile::tempdir().unwrap();
    let folder = pico_folder(work.path());
    let server = HubServer::of(vec![LocalRepository::model("acme/tiny", COMMIT, &folder).tagged("v1")]);
    let home = work.path().join("home");
    let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())];
    assert_eq!(info("hub:acme/tiny", &settings).json()["name"], "acme/tiny");

    let cache = home.join("hub/models--acme--tiny");
    let snapshot = cache.join("snapshots").join(COMMIT);
    assert_eq!(std::fs::read_to_string(cache.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(std::fs::read_dir(cache.join("refs")).unwrap().count(), 1);
    for kept in ["model.safetensors", "LICENSE", "chat_template.jinja", "additional_chat_templates/tool_use.jinja"] {
        assert_eq!(std::fs::read(snapshot.join(kept)).unwrap(), std::fs::read(folder.join(kept)).unwrap(), "{kept}");
    }
    assert!(!snapshot.join("pytorch_model.bin").exists() && !snapshot.join("README.md").exists());
    #[cfg(unix)]
    assert!(snapshot.join("config.json").is_symlink(), "files are links to blobs, which revisions share");

    // What is there is not downloaded again, and is enough without the Hub.
    let requests = server.requests().len();
    info("hub:acme/tiny@v1", &settings).ok();
    assert_eq!(server.requests().len(), requests + 1);
    assert_eq!(std::fs::read_to_string(cache.join("refs/v1")).unwrap(), COMMIT);
    let offline = [&settings[..], &[("HF_HUB_OFFLINE", "1")]].concat();
    info("hub:acme/tiny", &offline).ok();
    info(&format!("hub:acme/tiny@{COMMIT}"), &settings).ok();
    assert_eq!(server.requests().len(), requests + 1, "a commit never changes");
}

#[test]
fn a_slash_in_the_name_of_a_branch_is_percent_encoded() {
    let work = tempfile::tempdir().unwrap();
    let repository = LocalRepository::model("acme/tiny", COMMIT, &pico_folder(work.path())).tagged("feature/v2");
    let server = HubServer::of(vec![repository]);
    let home = work.path().join("home");
    let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())];
    info("hub:acme/tiny@feature%2Fv2", &settings).ok();
    let reference = home.join("hub/models--acme--tiny/refs/feature/v2");
    assert_eq!(std::fs::read_to_string(reference).unwrap(), COMMIT, "where huggingface_hub has it");
    info("hub:acme/tiny@feature%2Fv2", &[&settings[..], &[("HF_HUB_OFFLINE", "1")]].concat()).ok();
    let library = work.path().join("library");
    let add = ["library", "add", "--library", library.to_str().unwrap(), "hub:acme/tiny@feature/v2"];
    let message = binary::Ran::from(with(&add, &settings).output().unwrap()).failed(1);
    assert_contains(&message, &["no such revision", "hub:acme/tiny@feature;", "%2F for a slash in its name"]);
}

#[test]
fn a_download_by_commit_writes_no_reference() {
    let work = tempfile::tempdir().unwrap();
    let server = HubServer::of(vec![LocalRepository::model("acme/tiny", COMMIT, &pico_folder(work.path()))]);
    let cache = work.path().join("cache");
    let settings = [("HF_ENDPOINT", server.address()), ("HF_HUB_CACHE", cache.to_str().unwrap())];
    info(&format!("hub:acme/tiny@{COMMIT}"), &settings).ok();
    let folder = cache.join("models--acme--tiny");
    assert!(folder.join("snapshots").join(COMMIT).join("model.safetensors").exists());
    assert!(!folder.join("refs").exists());
    let offline = [("HF_ENDPOINT", "http://127.0.0.1:9"), ("HUGGINGFACE_HUB_CACHE", cache.to_str().unwrap())];
    info(&format!("hub:acme/tiny@{COMMIT}"), &offline).ok();
}

#[test]
fn a_branch_that_moved_is_downloaded_again() {
    let work = tempfile::tempdir().unwrap();
    let folder = pico_folder(work.path());
    let home = work.path().join("home");
    let open = |commit| {
        let server = HubServer::of(vec![LocalRepository::model("acme/tiny", commit, &folder)]);
        let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())];
        (info("hub:acme/tiny", &settings).json(), server.requests())
    };
    open(COMMIT);
    // A file that did not change is not downloaded again.
    let snapshots = home.join("hub/models--acme--tiny/snapshots");
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    std::fs::write(
        folder.join("config.json"),
        config.replacen("\"max_position_embeddings\": ", "\"max_position_embeddings\": 1", 1),
    )
    .unwrap();
    let (moved, requests) = open(NEWER);
    assert!(snapshots.join(NEWER).join("model.safetensors").exists());
    assert!(
        requests.iter().all(|request| request.path.contains("/revision/") || request.path.ends_with("config.json"))
    );
    assert_eq!(std::fs::read_to_string(home.join("hub/models--acme--tiny/refs/main")).unwrap(), NEWER);
    // The Hub does not answer: the last download counts, and a warning says so.
    let settings = [("HF_ENDPOINT", "http://127.0.0.1:9"), ("HF_HOME", home.to_str().unwrap())];
    let cached = info("hub:acme/tiny", &settings).ok();
    assert_contains(
        &cached.stderr,
        &["warning: hub:acme/tiny: no network: http://127.0.0.1:9", "Using the cached", NEWER],
    );
    let cached: Value = serde_json::from_str(&cached.stdout).unwrap();
    for key in ["max_positions", "fingerprint"] {
        assert_eq!(cached[key], moved[key], "{key}");
    }
}

#[test]
fn the_files_of_an_index_are_downloaded_and_no_others() {
    let work = tempfile::tempdir().unwrap();
    let folder = pico_folder(work.path());
    std::fs::rename(folder.join("model.safetensors"), folder.join("model-00001-of-00001.safetensors")).unwrap();
    std::fs::write(folder.join("consolidated.safetensors"), "no").unwrap();
    let bytes = std::fs::read(folder.join("model-00001-of-00001.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let names = header.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
    let map: Value = names.map(|name| (name.clone(), json!("model-00001-of-00001.safetensors"))).collect();
    std::fs::write(folder.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
    let server = HubServer::of(vec![LocalRepository::model("acme/tiny", COMMIT, &folder)]);
    let home = work.path().join("home");
    let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())];
    info("hub:acme/tiny", &settings).ok();
    let snapshot = home.join("hub/models--acme--tiny/snapshots").join(COMMIT);
    assert!(!snapshot.join("consolidated.safetensors").exists());
    // A partial copy is no copy.
    std::fs::remove_file(snapshot.join("model-00001-of-00001.safetensors")).unwrap();
    let offline = [&settings[..], &[("HF_HUB_OFFLINE", "1")]].concat();
    assert_contains(
        &info("hub:acme/tiny", &offline).failed(1),
        &["HF_HUB_OFFLINE is set", "is incomplete: it has no model-00001-of-00001.safetensors"],
    );
}

#[test]
fn a_repository_without_usable_weights_says_what_it_has() {
    let work = tempfile::tempdir().unwrap();
    let folder = pico_folder(work.path());
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    let server = HubServer::of(vec![LocalRepository::model("acme/tiny", COMMIT, &folder)]);
    let home = work.path().join("home");
    let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())];
    let error = info("hub:acme/tiny", &settings).failed(1);
    assert_contains(&error, &["hub:acme/tiny", "no weights in safetensors", "it has", "pytorch_model.bin"]);
    for name in ["tiny-Q8_0.gguf", "tiny-Q4_K.gguf"] {
        std::fs::write(folder.join(name), "no").unwrap();
    }
    let server = HubServer::of(vec![LocalRepository::model("acme/tiny", NEWER, &folder)]);
    let error = info("hub:acme/tiny", &[("HF_ENDPOINT", server.address()), settings[1]]).failed(1);
    assert_contains(&error, &["its weights are in GGUF; name one file: --base hub:acme/tiny/tiny-Q4_K.gguf"]);
}

#[test]
fn all_files_of_a_split_model_are_downloaded_and_no_others() {
    let work = tempfile::tempdir().unwrap();
    let folder = pico_folder(work.path());
    let own = ["tiny-00001-of-00002.gguf", "tiny-00002-of-00002.gguf"];
    let others = ["tiny-Q8_0-00001-of-00002.gguf", "tiny.gguf", "model.safetensors"];
    for name in own.iter().chain(&others[..2]) {
        std::fs::write(folder.join(name), "no").unwrap();
    }
    let server = HubServer::of(vec![LocalRepository::model("acme/tiny", COMMIT, &folder)]);
    let home = work.path().join("home");
    let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())];
    assert_contains(&info(&format!("hub:acme/tiny/{}", own[1]), &settings).failed(1), &["not a GGUF file"]);
    let snapshot = home.join("hub/models--acme--tiny/snapshots").join(COMMIT);
    assert!(own.iter().all(|name| snapshot.join(name).exists()));
    assert!(!others.iter().any(|name| snapshot.join(name).exists()));
    // A partial copy is no copy.
    std::fs::remove_file(snapshot.join(own[0])).unwrap();
    let offline = [&settings[..], &[("HF_HUB_OFFLINE", "1")]].concat();
    let error = info(&format!("hub:acme/tiny/{}", own[1]), &offline).failed(1);
    assert_contains(&error, &["is incomplete: it has no tiny-00001-of-00002.gguf"]);
}

#[test]
fn the_token_is_sent() {
    let work = tempfile::tempdir().unwrap();
    let home = work.path().to_str().unwrap();
    std::fs::write(work.path().join("token"), "from-file\n").unwrap();
    let cases: [(&[(&str, &str)], &str); 2] = [(&[("HF_TOKEN", "abc")], "Bearer abc"), (&[], "Bearer from-file")];
    for (settings, token) in cases {
        let server = HubServer::answering(Answer::status(401, &[]));
        let all = [&[("HF_ENDPOINT", server.address()), ("HF_HOME", home)], settings].concat();
        info("hub:acme/gated", &all).failed(1);
        assert_eq!(server.requests()[0].authorization.as_deref(), Some(token));
    }
    let folder = pico_folder(work.path());
    let server = HubServer::of(vec![LocalRepository::model("acme/tiny", COMMIT, &folder)]);
    info("hub:acme/tiny", &[("HF_ENDPOINT", server.address()), ("HF_HOME", home), ("HF_TOKEN", "abc")]).ok();
    assert!(server.requests().iter().all(|request| request.authorization.as_deref() == Some("Bearer abc")));
}

#[cfg(unix)]
#[test]
fn variables_that_are_not_unicode_are_ignored() {
    use std::os::unix::ffi::OsStrExt;
    let work = tempfile::tempdir().unwrap();
    let settings = [("HF_HUB_OFFLINE", "1"), ("HF_HOME", work.path().to_str().unwrap())];
    let mut command = with(&["base", "info", "hub:acme/tiny"], &settings);
    command.env("OTHER", std::ffi::OsStr::from_bytes(b"caf\xe9"));
    assert_contains(&binary::Ran::from(command.output().unwrap()).failed(1), &["HF_HUB_OFFLINE is set"]);
}

/// Trains an adapter for pico, and returns its folder.
fn adapter(work: &Path) -> PathBuf {
    let library = work.join("trained");
    let (rows, folder) = (work.join("rows.jsonl"), library.to_str().unwrap().to_owned());
    let line = |n: usize| json!({"input": format!("say {n}"), "output": "yes"}).to_string();
    std::fs::write(&rows, (0..20).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    let task = rows.to_str().unwrap();
    run(["train-experts", "-q", "--base", "pico", "--tasks", task, "--library", &folder, "--set", "max_steps=1"]).ok();
    library.join("experts/rows")
}

#[test]
fn adapters_are_added_from_the_hub() {
    let work = tempfile::tempdir().unwrap();
    let from = adapter(work.path());
    let many = work.path().join("many");
    for name in ["first", "second"] {
        std::fs::create_dir_all(many.join(name)).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(from.join(file), many.join(name).join(file)).unwrap();
        }
    }
    let model = |name: &str, folder: &Path| LocalRepository::model(name, COMMIT, folder);
    let server = HubServer::of(vec![
        model("lots/base-task12", &from),
        model("lots/base-task1", &from),
        model("lots/base-task2", &from),
        model("acme/many", &many),
        model("other/task1", &from),
    ]);
    let home = work.path().join("home");
    let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())];
    let add = |library: &str, adapters: &[&str]| -> binary::Ran {
        let library = work.path().join(library);
        let options = ["library", "add", "--json", "--base", "pico", "--library", library.to_str().unwrap()];
        with(&[&options, adapters].concat(), &settings).output().unwrap().into()
    };
    let names = |ran: binary::Ran| -> Vec<String> {
        let document = ran.json();
        let name = |added: &Value| added["name"].as_str().unwrap().to_owned();
        document["added"].as_array().unwrap().iter().map(name).collect()
    };
    assert_eq!(
        names(add("a", &["hub:lots/base-task2", "b=hub:acme/many@main/second", "hub:acme/many/first"])),
        ["base-task2", "b", "first"]
    );
    // The weights come last: a download that is interrupted must not look complete.
    let requests = server.requests();
    let at = |file: &str| {
        let path = format!("/lots/base-task2/resolve/{COMMIT}/{file}");
        requests.iter().position(|request| request.path == path).unwrap_or_else(|| panic!("{path}: {requests:?}"))
    };
    assert!(at("expert.json").max(at("adapter_config.json")) < at("adapter_model.safetensors"));
    // The server lists two names a page.
    assert_eq!(names(add("b", &["hub:lots/*task1*"])), ["base-task1", "base-task12"]);
    assert!(server.requests().iter().any(|request| request.path.contains("author=lots&search=task1")));
    assert_contains(&add("c", &["hub:lots/*task3*"]).failed(1), &["no model repository of that name"]);
    assert_contains(&add("c", &["x=hub:lots/*"]).failed(2), &["one name for 3 adapters"]);
    let absent = add("c", &["hub:acme/many/third"]).failed(1);
    assert_contains(&absent, &["no third/adapter_config.json; it has", "first/adapter_config.json"]);
    assert_contains(&add("c", &["hub:many"]).failed(1), &["expected hub:ORG/NAME[@REV][/FOLDER|/FILE.gguf]"]);
}

#[test]
fn gguf_adapters_are_added_from_the_hub() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).display().to_string();
    adapter(work.path());
    run(["library", "export", "--library", &path("trained"), "--format", "gguf", "--out", &path("one/loras")]).ok();
    std::fs::rename(path("one/loras/rows.gguf"), path("one/rows-f32.gguf")).unwrap();
    std::fs::remove_dir_all(path("one/loras")).unwrap();
    std::fs::create_dir_all(path("two/loras")).unwrap();
    for name in ["a", "b"] {
        std::fs::copy(path("one/rows-f32.gguf"), path(&format!("two/loras/{name}.gguf"))).unwrap();
    }
    let model = |name: &str, folder: &str| LocalRepository::model(name, COMMIT, Path::new(&path(folder)));
    let large = Behavior { listed_size: Some((4 << 30) + 1), ..Behavior::default() };
    let large = model("acme/large", "one").with(large);
    let server = HubServer::of(vec![model("acme/one", "one"), model("acme/two", "two"), large]);
    let (home, library) = (path("home"), path("library"));
    let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", home.as_str())];
    let add = |adapters: &[&str], more: &[(&str, &str)]| -> binary::Ran {
        let options = ["library", "add", "--json", "--base", "pico", "--library", &library];
        with(&[&options, adapters].concat(), &[&settings[..], more].concat()).output().unwrap().into()
    };
    let added = add(&["hub:acme/one", "hub:acme/two/loras/a.gguf", "x=hub:acme/two@main/loras/b.gguf"], &[]).json();
    let names: Vec<_> = added["added"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["one", "a", "x"]);
    let offline = [("HF_HUB_OFFLINE", "1")];
    add(&["again=hub:acme/one", "again_a=hub:acme/two/loras/a.gguf"], &offline).ok();
    let several = add(&["hub:acme/two/loras"], &[]).failed(1);
    assert_contains(&several, &["it holds several GGUF files; name one: hub:acme/two/loras/a.gguf"]);
    assert_contains(&add(&["hub:acme/two/loras/c.gguf"], &[]).failed(1), &["no loras/c.gguf; it has loras/a.gguf"]);
    let refused = add(&["hub:acme/large"], &[]).failed(1);
    assert_contains(&refused, &["rows-f32.gguf of 4.0 GiB", "name it: hub:acme/large/rows-f32.gguf"]);
    add(&["large=hub:acme/large/rows-f32.gguf"], &[]).ok();
}

#[test]
fn a_repository_that_cannot_be_downloaded_is_refused_by_its_name() {
    let work = tempfile::tempdir().unwrap();
    let (from, empty) = (adapter(work.path()), work.path().join("empty"));
    std::fs::create_dir(&empty).unwrap();
    std::fs::write(empty.join("README.md"), "soon").unwrap();
    let model = |name: &str, folder: &Path| LocalRepository::model(name, COMMIT, folder);
    let server = HubServer::of(vec![model("lots/a", &from), model("lots/b", &empty), model("lots/c", &from)]);
    let home = work.path().join("home");
    let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())];
    let library = work.path().join("library");
    let add = |options: &[&str]| -> binary::Ran {
        let fixed =
            ["library", "add", "--json", "--base", "pico", "--library", library.to_str().unwrap(), "hub:lots/*"];
        with(&[&fixed, options].concat(), &settings).output().unwrap().into()
    };
    let refused = add(&[]).failed(1);
    assert_contains(&refused, &["1 of 3 adapters were refused", "--skip-refused", "b: ", "no adapter_config.json"]);
    assert!(!library.exists(), "nothing was added");
    let document = add(&["--skip-refused"]).json();
    let names = |key: &str| -> Vec<&str> {
        document[key].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect()
    };
    assert_eq!((names("added"), names("refused")), (vec!["a", "c"], vec!["b"]));
    assert_eq!(document["refused"][0]["from"], "hub:lots/b");
}

#[test]
fn a_merge_into_a_base_of_the_hub_keeps_its_files_and_its_name() {
    let work = tempfile::tempdir().unwrap();
    let from = adapter(work.path());
    let folder = pico_folder(work.path());
    let server = HubServer::of(vec![LocalRepository::model("acme/tiny", COMMIT, &folder)]);
    let home = work.path().join("home");
    let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())];
    let (library, out) = (work.path().join("library"), work.path().join("merged"));
    let (library, out) = (library.to_str().unwrap(), out.to_str().unwrap());
    let lorakit = |arguments: &str| -> binary::Ran {
        with(&arguments.split_whitespace().collect::<Vec<_>>(), &settings).output().unwrap().into()
    };
    lorakit(&format!("library add --base hub:acme/tiny --library {library} e={}", from.display())).ok();
    lorakit(&format!("merge --library {library} --base hub:acme/tiny --method linear --out {out} --into-base")).ok();
    for kept in [
        "LICENSE",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "generation_config.json",
        "added_tokens.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        let read = |folder: &Path| std::fs::read(folder.join(kept)).unwrap();
        assert_eq!(read(Path::new(out)), read(&folder), "{kept}");
    }
    let adapter = work.path().join("adapter");
    let named = |more: &str| {
        let out = adapter.to_str().unwrap();
        lorakit(&format!("merge --library {library} --method linear --overwrite --out {out} {more}")).ok();
        let config = std::fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
        serde_json::from_str::<Value>(&config).unwrap()["base_model_name_or_path"].clone()
    };
    // Without --base, the library's own is taken from the cache, and checked.
    let again = work.path().join("again");
    let ran = lorakit(&format!("merge --library {library} --method linear --into-base --out {}", again.display())).ok();
    assert_contains(&ran.stderr, &["hub:acme/tiny"]);
    let weights = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(weights(&again), weights(Path::new(out)));
    // Never downloaded, it may be another model: folders bear the name of what they were trained from.
    let empty = work.path().join("empty");
    let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", empty.to_str().unwrap())];
    let line =
        format!("merge --library {library} --method linear --into-base --out {}", work.path().join("no").display());
    let ran: binary::Ran = with(&line.split_whitespace().collect::<Vec<_>>(), &settings).output().unwrap().into();
    assert_contains(
        &ran.failed(2),
        &["needs --base", "`acme/tiny`", "that name alone does not locate on this machine"],
    );
    // The expert was trained for pico, which its own config says; a merge of it says the same.
    assert_eq!(named(""), "pico");
}

/// The name of the base that an adapter trained with these options records.
fn recorded(work: &Path, base: &str, more: &[&str]) -> Value {
    let rows = work.join("rows.jsonl");
    let line = |n: usize| json!({"input": format!("say {n}"), "output": "yes"}).to_string();
    std::fs::write(&rows, (0..20).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    let library = work.join("library");
    let _ = std::fs::remove_dir_all(&library);
    let arguments = ["train-experts", "-q", "--base", base, "--tasks", "rows.jsonl", "--library", "library"];
    let all = [&arguments[..], &["--set", "max_steps=1"], more].concat();
    binary::Ran::from(command(all).current_dir(work).output().unwrap()).ok();
    let config = std::fs::read_to_string(library.join("experts/rows/adapter_config.json")).unwrap();
    serde_json::from_str::<Value>(&config).unwrap()["base_model_name_or_path"].clone()
}

#[test]
fn adapters_record_the_name_of_their_base() {
    let work = tempfile::tempdir().unwrap();
    let folder = pico_folder(work.path());
    assert_eq!(recorded(work.path(), "./pico", &[]), "./pico");
    assert_eq!(recorded(work.path(), "./pico", &["--base-name", "acme/tiny"]), "acme/tiny");
    let mut config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    config["_name_or_path"] = "acme/other".into();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    assert_eq!(recorded(work.path(), "./pico", &[]), "acme/other");
    config["_name_or_path"] = "/scratch/run/checkpoint-1".into();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    assert_eq!(recorded(work.path(), "./pico", &[]), "./pico");
}

#[test]
fn tasks_are_read_from_datasets_of_the_hub() {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("qa");
    std::fs::create_dir_all(folder.join("data")).unwrap();
    let lines = |rows: std::ops::Range<usize>| -> String {
        rows.map(|n| format!("{}\n", json!({"input": n.to_string(), "output": "yes"}))).collect()
    };
    std::fs::write(folder.join("data/train-0.jsonl"), lines(0..30)).unwrap();
    std::fs::write(folder.join("data/train-1.jsonl"), lines(30..40)).unwrap();
    std::fs::write(folder.join("data/test.jsonl"), lines(40..45)).unwrap();
    let server = HubServer::of(vec![LocalRepository::dataset("acme/qa", COMMIT, &folder).tagged("v1")]);
    let home = work.path().join("home");
    let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())];
    let list = |task: &str, more: &[(&str, &str)]| -> binary::Ran {
        with(&["task", "ls", task, "--json"], &[&settings[..], more].concat()).output().unwrap().into()
    };
    let listed = list("hub:datasets/acme/qa", &[]).json();
    let task = &listed["tasks"][0];
    assert_eq!((&task["name"], &task["path"]), (&json!("qa"), &json!("hub:datasets/acme/qa")));
    let counts = |task: &Value| ["train", "validation", "test"].map(|split| task["rows"][split].as_u64().unwrap());
    let [train, validation, test] = counts(task);
    assert_eq!((train + validation, test), (40, 5), "{task}");
    // Asked first for the Parquet files of the Hub's conversion, which this dataset has not.
    assert!(server.requests()[0].path.ends_with("/api/datasets/acme/qa/revision/refs%2Fconvert%2Fparquet?blobs=true"));
    assert_eq!(counts(&list("x=hub:datasets/acme/qa@v1", &[]).json()["tasks"][0]), [train, validation, test]);
    let offline = list("hub:datasets/acme/qa", &[("HF_HUB_OFFLINE", "1")]).json();
    assert_eq!(counts(&offline["tasks"][0]), [train, validation, test]);
    assert_contains(&list("hub:datasets/acme/none", &[]).failed(1), &["no such repository", "hub:datasets/acme/none"]);
    assert_contains(&list("hub:datasets/acme/qa:x", &[]).failed(1), &["`x`: the dataset has one configuration"]);
    assert_contains(&list("hub:datasets/qa", &[]).failed(1), &["expected hub:datasets/ORG/NAME"]);
    assert_contains(&list("hub:acme/qa", &[]).failed(2), &["a task of the Hub is hub:datasets/ORG/NAME"]);
}

#[test]
fn a_partial_conversion_of_the_hub_is_not_the_dataset() {
    let work = tempfile::tempdir().unwrap();
    let (own, converted) = (work.path().join("own"), work.path().join("converted/default/partial-train"));
    std::fs::create_dir_all(&own).unwrap();
    std::fs::create_dir_all(&converted).unwrap();
    let lines = (0..40).map(|n| format!("{}\n", json!({"input": n.to_string(), "output": "yes"})));
    std::fs::write(own.join("rows.jsonl"), lines.collect::<String>()).unwrap();
    // No reader opens it.
    std::fs::write(converted.join("0000.parquet"), b"").unwrap();
    let conversion = LocalRepository::dataset("acme/big", &COMMIT.replace('0', "f"), &work.path().join("converted"));
    let conversion = || conversion.clone().tagged("refs/convert/parquet");
    let listed = |repositories: Vec<LocalRepository>, home: &str| -> binary::Ran {
        let server = HubServer::of(repositories);
        let home = work.path().join(home);
        let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())];
        with(&["task", "ls", "hub:datasets/acme/big", "--json"], &settings).output().unwrap().into()
    };
    let both = listed(vec![LocalRepository::dataset("acme/big", COMMIT, &own), conversion()], "both").json();
    let rows: u64 =
        ["train", "validation", "test"].map(|split| both["tasks"][0]["rows"][split].as_u64().unwrap()).iter().sum();
    assert_eq!(rows, 40, "{both}");
    // A dataset whose own files cannot be read, such as one made by a script.
    let empty = work.path().join("empty");
    std::fs::create_dir_all(&empty).unwrap();
    std::fs::write(empty.join("big.py"), "").unwrap();
    let message = listed(vec![LocalRepository::dataset("acme/big", COMMIT, &empty), conversion()], "script").failed(1);
    assert_contains(&message, &["only a part of it (`partial-train`)", "no file that ends in .parquet"]);
}

#[test]
fn routers_are_fitted_to_tasks_of_the_hub() {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("toy");
    std::fs::create_dir_all(&folder).unwrap();
    let lines = (0..40).map(|n| format!("{}\n", json!({"input": n.to_string(), "output": "yes"})));
    std::fs::write(folder.join("train.jsonl"), lines.collect::<String>()).unwrap();
    let server = HubServer::of(vec![LocalRepository::dataset("acme/toy", COMMIT, &folder)]);
    let home = work.path().join("home");
    let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())];
    let library = work.path().join("library").display().to_string();
    let common = ["--base", "pico", "--library", &library, "--tasks", "hub:datasets/acme/toy"];
    let ran = |arguments: &[&str], more: &[(&str, &str)]| -> binary::Ran {
        with(&[arguments, &common].concat(), &[&settings[..], more].concat()).output().unwrap().into()
    };
    ran(&["train-experts", "-q", "--set", "max_steps=1", "eval_steps=0"], &[]).ok();
    let eval = |router: &str, more: &[(&str, &str)]| {
        ran(&["eval", "--limit", "2", "--metrics", "loss", "--router", router], more)
    };
    assert_contains(&eval("cm", &[]).ok().stderr, &["fitting to rows"]);
    assert_contains(&eval("tp", &[("HF_HUB_OFFLINE", "1")]).ok().stderr, &["fitting to rows"]);
}
