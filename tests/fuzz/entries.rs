//! Readers of untrusted input. Each takes arbitrary bytes and may refuse them, but must not panic, hang, exhaust
//! memory, or touch anything outside its folder.
//!
//! The fuzz targets and the ordinary test `tests/malformed_input.rs` both include this file.

use lorakit_adapter::{Adapter, Library, MttlExpert, PathPattern, PeftConfig};
use lorakit_cluster::Clusters;
use lorakit_format::gguf::GgufShards;
use lorakit_task::{Split, Task};
use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;
use zip::write::{SimpleFileOptions, ZipWriter};

/// Module paths, and some that provoke backtracking in a pattern.
const PATHS: [&str; 4] = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.31.mlp.experts.7.down_proj",
    "transformer.h.11.attn.c_attn",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!",
];

/// The name of an entry and its function. Its folder may contain files from earlier inputs.
pub type Entry = (&'static str, fn(&Path, &[u8]));

/// All entries.
pub const ENTRIES: [Entry; 11] = [
    ("adapter_config", adapter_config),
    ("adapter_folder", adapter_folder),
    ("torch_file", torch_file),
    ("pickle", pickle),
    ("mttl_expert", mttl_expert),
    ("target_pattern", target_pattern),
    ("task_file", task_file),
    ("template", template),
    ("clusters", clusters),
    ("library", library),
    ("gguf", gguf),
];

/// An adapter_config.json, and the modules that it selects.
pub fn adapter_config(_: &Path, bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(config) = PeftConfig::parse(text) else { return };
    for path in PATHS {
        let _ = (config.rank_of(path), config.scale_of(path), config.targets.matches(path));
    }
    let _ = config.targets.unmatched(&PATHS);
}

/// An adapter_model.safetensors next to a plain configuration.
pub fn adapter_folder(folder: &Path, bytes: &[u8]) {
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}"#;
    put(&folder.join("adapter_config.json"), config.as_bytes());
    put(&folder.join("adapter_model.safetensors"), bytes);
    if let Ok(adapter) = Adapter::read(folder) {
        assert!(adapter.norm().is_finite() || adapter.parameters() > 0);
        let _ = adapter.cosine(&adapter);
    }
}

/// An adapter_model.bin (a pickle in a zip file) next to a plain configuration: read as data or not at all.
pub fn torch_file(folder: &Path, bytes: &[u8]) {
    let folder = folder.join("pickled");
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}"#;
    put(&folder.join("adapter_config.json"), config.as_bytes());
    put(&folder.join("adapter_model.bin"), bytes);
    if let Ok(adapter) = Adapter::read(&folder) {
        assert!(adapter.norm().is_finite() || adapter.parameters() > 0);
    }
}

/// The pickle of an adapter_model.bin in a valid zip: mutating the zip itself would only break its checksums.
pub fn pickle(folder: &Path, bytes: &[u8]) {
    torch_file(folder, &torch_saved(bytes));
}

/// The pickle of either file of an mttl expert.
pub fn mttl_expert(folder: &Path, bytes: &[u8]) {
    const ABOUT: &[u8] = b"\x80\x02}X\x0d\0\0\0expert_config}(X\x09\0\0\0lora_rankK\x02X\x0a\0\0\0lora_alphaK\x04us.";
    let file = torch_saved(bytes);
    put(&folder.join("weights.meta"), &torch_saved(ABOUT));
    put(&folder.join("weights.ckpt"), &file);
    put(&folder.join("about.meta"), &file);
    for name in ["weights", "about"] {
        if let Ok(expert) = MttlExpert::read(folder, name) {
            assert!(expert.adapter.norm().is_finite() || expert.adapter.parameters() > 0);
        }
    }
}

/// A torch.save file with this pickle and two storages.
fn torch_saved(pickle: &[u8]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let storage: Vec<u8> = (0..8).flat_map(|value| f32::from(value as u8).to_le_bytes()).collect();
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("data.pkl", pickle), ("byteorder", b"little"), ("data/0", &storage), ("data/1", &storage)] {
        let _ = zip.start_file(format!("a/{name}"), stored).map(|()| zip.write_all(bytes));
    }
    zip.finish().map(Cursor::into_inner).unwrap_or_default()
}

/// A regular expression over module paths.
pub fn target_pattern(_: &Path, bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for pattern in
        [PathPattern::whole(text), PathPattern::suffix(text), PathPattern::layer_list(text)].into_iter().flatten()
    {
        for path in PATHS {
            let _ = (pattern.matches(path), pattern.layer(path));
        }
    }
}

/// A task TOML if the bytes start with a name or a bracket, otherwise a data file.
pub fn task_file(folder: &Path, bytes: &[u8]) {
    put(&folder.join("data.json"), br#"[{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]"#);
    let named = bytes.first().is_some_and(|byte| byte.is_ascii_lowercase() || *byte == b'#');
    let file = folder.join(if named { "task.toml" } else { "task.json" });
    put(&file, bytes);
    load(&file);
}

/// A template over the columns of a row.
pub fn template(folder: &Path, bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    put(&folder.join("data.json"), br#"[{"input": "a b", "output": "b", "list": ["x", "y"], "n": 3}]"#);
    let quoted = serde_json::to_string(text).unwrap_or_default();
    let file = folder.join("template.toml");
    put(&file, format!("rows = \"data.json\"\nprompt = {quoted}\ntarget = \"output\"\n").as_bytes());
    load(&file);
}

/// A clusters.json.
pub fn clusters(folder: &Path, bytes: &[u8]) {
    let file = folder.join("clusters.json");
    put(&file, bytes);
    if let Ok(clusters) = Clusters::read(&file) {
        let again = folder.join("again.json");
        if clusters.write(&again).is_ok() {
            assert_eq!(Clusters::read(&again).ok(), Some(clusters), "a written file can be read");
        }
    }
}

/// A library's own files: the first byte selects which file to write, or which part becomes a link out of the library.
pub fn library(folder: &Path, bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let (root, outside) = (folder.join("library"), folder.join("outside"));
    // Taking the lock removes files with the second name, but not outside the library.
    let kept = ["kept", ".new-kept"].map(|name| outside.join(name));
    kept.iter().for_each(|file| put(file, b"kept"));
    put(&root.join("library.json"), br#"{"format": 1, "name": "l", "base": null}"#);
    put(&root.join("experts/e/expert.json"), b"{}");
    let file = ["library.json", "experts/e/expert.json", ".adding.json", "experts/e/adapter_config.json"];
    put(&root.join(file[usize::from(*which) % file.len()]), bytes);
    let parts = ["experts", "models", "routers", "runs", ".lock"];
    let link = parts.get(usize::from(which.wrapping_sub(b'a'))).map(|part| root.join(part));
    link.iter().for_each(|link| lead(link, &outside));
    if let Ok(library) = Library::open(&root) {
        for name in library.expert_names().unwrap_or_default() {
            let _ = (library.record(&name), library.adapter(&name).is_ok());
        }
        let _ = library.lock().is_ok();
        let name = String::from_utf8_lossy(bytes);
        let _ = (library.contains(&name), library.adapter(&name).is_ok(), library.remove(&name).is_ok());
    }
    let entries = fs::read_dir(&outside).map_or(0, Iterator::count);
    assert!(entries == kept.len() && folder.exists(), "something outside the library was touched");
    link.iter().for_each(|link| drop(fs::remove_file(link)));
}

/// A GGUF file, alone or as the first of two.
pub fn gguf(folder: &Path, bytes: &[u8]) {
    let files = ["model.gguf", "model-00001-of-00002.gguf"].map(|name| folder.join(name));
    for file in files {
        put(&file, bytes);
        let Ok(shards) = GgufShards::open(&file) else { continue };
        for (_, file, entry) in shards.tensors() {
            assert_eq!(file.bytes()[entry.bytes.clone()].len(), entry.bytes.len());
        }
    }
}

fn load(file: &Path) {
    let Some(name) = file.to_str() else { return };
    for task in Task::load(name, None).unwrap_or_default() {
        let _ = (task.rows(Split::All, None).is_ok(), task.sha256().len());
    }
}

/// Creates a symbolic link to `outside`, on systems that have them.
fn lead(place: &Path, outside: &Path) {
    let _ = (fs::remove_dir_all(place), fs::remove_file(place));
    #[cfg(unix)]
    let _ = std::os::unix::fs::symlink(outside, place);
    #[cfg(not(unix))]
    let _ = outside;
}

/// Writes a file and creates its parent folders, which an earlier input may have removed.
fn put(file: &Path, bytes: &[u8]) {
    if let Some(folder) = file.parent() {
        let _ = fs::create_dir_all(folder);
    }
    let _ = fs::write(file, bytes);
}

/// Runs an entry in a folder that this thread keeps for it.
pub fn in_own_folder(entry: fn(&Path, &[u8]), bytes: &[u8]) {
    thread_local!(static FOLDER: Option<tempfile::TempDir> = tempfile::tempdir().ok());
    FOLDER.with(|folder| folder.iter().for_each(|folder| entry(folder.path(), bytes)));
}
