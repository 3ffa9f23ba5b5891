//! mttl libraries, written here byte by byte in torch.save's format, with the values of mttl's own experts.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use lorakit_adapter::{Adapter, LowRank, Matrix, MttlExpert, mttl_experts};
use serde_json::Value;
use zip::CompressionMethod::Stored;
use zip::write::{SimpleFileOptions, ZipWriter};

use crate::{chain, shared};

/// Builds a pickle of protocol 2.
struct Pickler(Vec<u8>);

impl Pickler {
    fn new() -> Self {
        Self(b"\x80\x02".to_vec())
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.0.push(b'X');
        self.0.extend((text.len() as u32).to_le_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    fn whole(&mut self, number: usize) -> &mut Self {
        match i32::try_from(number) {
            Ok(number) => self.codes(b"J").codes(&number.to_le_bytes()),
            Err(_) => self.codes(b"\x8a\x08").codes(&number.to_le_bytes()),
        }
    }

    fn float(&mut self, number: f64) -> &mut Self {
        self.0.push(b'G');
        self.0.extend(number.to_be_bytes());
        self
    }

    fn codes(&mut self, codes: &[u8]) -> &mut Self {
        self.0.extend(codes);
        self
    }

    /// A call of `_rebuild_tensor_v2` on a storage of floats.
    fn tensor(&mut self, storage: &str, values: usize, shape: [usize; 2], strides: [usize; 2]) -> &mut Self {
        self.codes(b"ctorch._utils\n_rebuild_tensor_v2\n((").text("storage").codes(b"ctorch\nFloatStorage\n");
        self.text(storage).text("cpu").whole(values).codes(b"tQ").whole(0);
        for pair in [shape, strides] {
            self.whole(pair[0]).whole(pair[1]).codes(b"\x86");
        }
        self.codes(b"\x89ccollections\nOrderedDict\n)RtR")
    }
}

fn save(path: &Path, pickle: &[u8], storages: &[Vec<f32>]) {
    let mut zip = ZipWriter::new(File::create(path).unwrap());
    let options = SimpleFileOptions::default().compression_method(Stored);
    let mut part = |name: String, bytes: &[u8]| {
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    };
    part("archive/data.pkl".to_owned(), pickle);
    part("archive/byteorder".to_owned(), b"little");
    for (at, values) in storages.iter().enumerate() {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        part(format!("archive/data/{at}"), &bytes);
    }
    zip.finish().unwrap();
}

/// The `tie_params` of mttl's own configurations.
const TIED: &str = r"q_proj.*\.lora_a|k_proj.*\.lora_a|v_proj.*\.lora_a";

/// The description of an expert, as mttl saves it; `tied` is empty where nothing is.
fn save_meta(path: &Path, rank: usize, alpha: f64, tied: &str, deleted: bool) {
    let mut pickle = Pickler::new();
    pickle.codes(b"}(").text("expert_task_name").text("boolq,piqa").text("expert_model").text("microsoft/phi-2");
    pickle.text("expert_deleted").codes(if deleted { b"\x88" } else { b"\x89" });
    pickle.text("expert_config").codes(b"}(").text("lora_rank").whole(rank).text("lora_alpha").float(alpha);
    pickle.text("tie_params");
    if tied.is_empty() {
        pickle.codes(b"N");
    } else {
        pickle.text(tied);
    }
    // A call that unpickling would run, in a part that is not read.
    pickle.codes(b"u").text("training_config").codes(b"cos\nsystem\n").text("false").codes(b"\x85Ru.");
    save(path, &pickle.0, &[]);
}

/// Saves matrices as a state dict; those of modules whose name contains `turned` are stored column-major.
fn save_weights(path: &Path, tensors: &[(&str, Matrix)], turned: &str) {
    let (mut pickle, mut storages) = (Pickler::new(), Vec::new());
    pickle.codes(b"ccollections\nOrderedDict\n)R(");
    for (at, (key, matrix)) in tensors.iter().enumerate() {
        let (rows, columns, values) = (matrix.rows(), matrix.cols(), matrix.values());
        let strides = if key.contains(turned) { [1, rows] } else { [columns, 1] };
        pickle.text(key).tensor(&at.to_string(), values.len(), [rows, columns], strides);
        storages.push(match key.contains(turned) {
            false => values.into_owned(),
            true => (0..columns).flat_map(|c| values.iter().skip(c).step_by(columns).copied()).collect(),
        });
    }
    pickle.codes(b"u}").text("_metadata").codes(b"}sb.");
    save(path, &pickle.0, &storages);
}

fn stored(value: &Value) -> Matrix {
    let rows: Vec<Vec<f32>> = serde_json::from_value(value.clone()).unwrap();
    Matrix::new(rows.len(), rows[0].len(), rows.concat()).unwrap()
}

fn transposed(matrix: &Matrix) -> Matrix {
    let values = matrix.values();
    let turned = (0..matrix.cols()).flat_map(|c| values.iter().skip(c).step_by(matrix.cols()).copied()).collect();
    Matrix::new(matrix.cols(), matrix.rows(), turned).unwrap()
}

#[test]
#[ignore = "needs ../shared"]
fn experts_of_mttl_are_read() {
    let path = shared("oracles/mttl_oracle.json");
    let oracle: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    for (name, tensors) in oracle["experts"].as_object().unwrap() {
        let tensors: Vec<(&str, Matrix)> =
            tensors.as_object().unwrap().iter().map(|(key, value)| (key.as_str(), stored(value))).collect();
        save_weights(&place(&format!("{name}.ckpt")), &tensors, "q_proj.lora_b");
        save_meta(&place(&format!("{name}.meta")), 2, 16.0, "", name == "e3");
    }
    assert_eq!(mttl_experts(folder.path()).unwrap(), ["e0", "e1", "e2", "e3"]);
    for name in ["e0", "e3"] {
        let read = MttlExpert::read(folder.path(), name).unwrap();
        assert_eq!((read.deleted, read.tasks), (name == "e3", vec!["boolq".to_owned(), "piqa".to_owned()]));
        assert_eq!(read.adapter.metadata().base_model.as_deref(), Some("microsoft/phi-2"));
        assert_eq!(read.adapter.modules().len(), oracle["experts"][name].as_object().unwrap().len() / 2);
        for (module, update) in read.adapter.modules() {
            let factor = |key: &str| transposed(&stored(&oracle["experts"][name][format!("{module}.{key}")]));
            let expected = LowRank::new(factor("lora_a"), factor("lora_b"), 8.0).unwrap();
            assert_eq!(update, &expected, "{name}, {module}");
        }
        // PEFT can read the imported adapter.
        let written = place(&format!("peft-{name}"));
        read.adapter.write(&written).unwrap();
        assert_eq!(Adapter::read(&written).unwrap().modules(), read.adapter.modules());
    }
}

#[test]
fn tied_matrices_are_shared_by_their_modules() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let matrix = |rows, columns, from: f32| {
        Matrix::new(rows, columns, (0..rows * columns).map(|at| from + at as f32).collect()).unwrap()
    };
    let tensors = [
        ("m.layers.0.q_proj.lora_a", matrix(3, 2, 1.0)),
        ("m.layers.0.q_proj.lora_b", matrix(2, 4, 20.0)),
        ("m.layers.0.k_proj.lora_b", matrix(2, 1, 40.0)),
    ];
    save_weights(&place("a.ckpt"), &tensors, "none");
    save_meta(&place("a.meta"), 2, 16.0, TIED, false);
    let adapter = MttlExpert::read(folder.path(), "a").unwrap().adapter;
    let modules = adapter.modules();
    assert_eq!(modules["m.layers.0.q_proj"].a(), modules["m.layers.0.k_proj"].a());
    assert_eq!(modules["m.layers.0.k_proj"].b(), &transposed(&tensors[2].1));

    let refused = |parts: &[&str]| {
        let error = chain(MttlExpert::read(folder.path(), "a").unwrap_err());
        parts.iter().for_each(|part| assert!(error.contains(part), "{error}"));
    };
    save_meta(&place("a.meta"), 2, 16.0, "", false);
    refused(&["a.ckpt", "m.layers.0.k_proj.lora_a", "missing"]);
    save_meta(&place("a.meta"), 3, 16.0, TIED, false);
    refused(&["a.ckpt", "rank 2", "lora_rank", "3"]);
    save_meta(&place("a.meta"), 2, f64::NAN, TIED, false);
    refused(&["a.meta", "lora_alpha", "NaN"]);
    save_meta(&place("a.meta"), 2, 16.0, TIED, false);
    save_weights(&place("a.ckpt"), &[("m.layers.0.q_proj.weight", matrix(2, 2, 1.0))], "none");
    refused(&["a.ckpt", "q_proj.weight", "does not belong to a LoRA"]);
    let bytes = fs::read(place("a.ckpt")).unwrap();
    fs::write(place("a.ckpt"), &bytes[..bytes.len() / 2]).unwrap();
    refused(&["a.ckpt", "zip"]);
}

#[test]
fn an_untied_sibling_is_not_taken_for_a_tied_one() {
    let folder = tempfile::tempdir().unwrap();
    let matrix = |rows, columns, from: f32| {
        Matrix::new(rows, columns, (0..rows * columns).map(|at| from + at as f32).collect()).unwrap()
    };
    let layer = |at: usize| {
        let path = |name: &str| format!("m.layers.{at}.attn.{name}");
        let from = 100.0 * at as f32;
        // `dense` comes first by name; its A is as wide as that of the tied ones.
        vec![
            (path("dense.lora_a"), matrix(3, 2, from)),
            (path("dense.lora_b"), matrix(2, 3, from + 10.0)),
            (path("q_proj.lora_a"), matrix(3, 2, from + 20.0)),
            (path("q_proj.lora_b"), matrix(2, 3, from + 30.0)),
            (path("k_proj.lora_b"), matrix(2, 1, from + 40.0)),
            (path("v_proj.lora_b"), matrix(2, 1, from + 50.0)),
        ]
    };
    let all = [layer(0), layer(1)].concat();
    let save = |kept: &dyn Fn(&str) -> bool| {
        let kept: Vec<(&str, Matrix)> =
            all.iter().filter(|(key, _)| kept(key)).map(|(key, matrix)| (key.as_str(), matrix.clone())).collect();
        save_weights(&folder.path().join("a.ckpt"), &kept, "none");
        MttlExpert::read(folder.path(), "a")
    };
    save_meta(&folder.path().join("a.meta"), 2, 16.0, TIED, false);
    let adapter = save(&|_| true).unwrap().adapter;
    for at in 0..2 {
        let update = |name: &str| &adapter.modules()[&format!("m.layers.{at}.attn.{name}")];
        for tied in ["q_proj", "k_proj", "v_proj"] {
            assert_eq!(update(tied).a(), &transposed(&layer(at)[2].1), "{tied}");
        }
        assert_eq!(update("dense").a(), &transposed(&layer(at)[0].1));
    }
    let refused = |kept: &dyn Fn(&str) -> bool, parts: &[&str]| {
        let error = chain(save(kept).unwrap_err());
        parts.iter().for_each(|part| assert!(error.contains(part), "{error}"));
    };
    refused(&|key| !key.contains("q_proj.lora_a"), &["0.attn.k_proj.lora_a", "missing"]);
    refused(&|key| !key.contains("dense.lora_a"), &["0.attn.dense.lora_a", "not tied", "does not match it"]);
    save_meta(&folder.path().join("a.meta"), 2, 16.0, r"attn\..*\.lora_a", false);
    refused(&|_| true, &["0.attn.k_proj.lora_a", "several", "dense", "q_proj"]);
    save_meta(&folder.path().join("a.meta"), 2, 16.0, "q_proj|k_proj|v_proj", false);
    refused(&|_| true, &["0.attn.k_proj.lora_a", "not tied"]);
    save_meta(&folder.path().join("a.meta"), 2, 16.0, "q_proj(", false);
    refused(&|_| true, &["a.meta", "tie_params", "q_proj("]);
}

#[test]
fn tensors_may_share_a_storage_up_to_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ckpt");
    save_meta(&folder.path().join("a.meta"), 2, 16.0, "", false);
    let mut pickle = Pickler::new();
    pickle.codes(b"}(");
    for at in 0..3 {
        // Every B is the transpose of its A.
        pickle.text(&format!("m.{at}.q.lora_a")).tensor("0", 64, [32, 2], [2, 1]);
        pickle.text(&format!("m.{at}.q.lora_b")).tensor("0", 64, [2, 32], [1, 2]);
    }
    pickle.codes(b"u.");
    save(&path, &pickle.0, &[(0..64).map(|value| value as f32).collect()]);
    let adapter = MttlExpert::read(folder.path(), "a").unwrap().adapter;
    assert_eq!(adapter.modules().len(), 3);
    for update in adapter.modules().values() {
        assert_eq!(update.b(), &transposed(update.a()));
    }
    let mut pickle = Pickler::new();
    pickle.codes(b"}(");
    for at in 0..100 {
        pickle.text(&format!("m.{at}.q.lora_a")).tensor("0", 1 << 16, [1 << 15, 2], [2, 1]);
    }
    pickle.codes(b"u.");
    save(&path, &pickle.0, &[vec![1.0; 1 << 16]]);
    let error = chain(MttlExpert::read(folder.path(), "a").unwrap_err());
    assert!(error.contains("claim 6553600 values"), "{error}");
}

#[test]
fn tensors_larger_than_their_storage_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    save_meta(&folder.path().join("a.meta"), 2, 16.0, "", false);
    for (shape, strides, said) in [
        ([1 << 15, 1 << 15], [0, 0], "claim 1073741824 values"),
        ([i32::MAX as usize; 2], [1, 1], "claim"),
        ([2, 2], [1 << 30, 1], "m.q.lora_b"),
        ([0, 1 << 62], [1, 1], "`m.q.lora_b`: found shape [0, 4611686018427387904]"),
        ([1 << 62, 0], [1, 1], "above zero"),
        ([4, 4], [4, 1], "does not fit 8 values"),
    ] {
        let mut pickle = Pickler::new();
        pickle.codes(b"}").text("m.q.lora_b").tensor("0", 1 << 30, shape, strides).codes(b"s.");
        save(&folder.path().join("a.ckpt"), &pickle.0, &[vec![1.0; 8]]);
        let error = chain(MttlExpert::read(folder.path(), "a").unwrap_err());
        assert!(error.contains("a.ckpt") && error.contains(said), "{error}");
    }
}
