//! `generate` and `eval` with a base that says a fixed chain of tokens.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;

use binary::{Ran, run, words};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// The words of the vocabulary, after its special tokens and bytes.
const WORDS: [&str; 6] = ["▁cat", "▁dog", "▁", "c", "a", "t"];
const POSITIONS: usize = 24;

/// A vocabulary like Llama 2's: special tokens, a token for each byte, and some words.
fn vocabulary() -> Vec<String> {
    let specials = ["<unk>", "<s>", "</s>", "<|im_end|>"].map(String::from);
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    specials.into_iter().chain(bytes).chain(WORDS.map(String::from)).collect()
}

fn id(token: &str) -> usize {
    vocabulary().iter().position(|known| known == token).unwrap()
}

fn byte_tokens(text: &str) -> Vec<String> {
    text.bytes().map(|byte| format!("<0x{byte:02X}>")).collect()
}

fn tokenizer() -> Value {
    let vocabulary: serde_json::Map<String, Value> =
        vocabulary().into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let special = ["<unk>", "<s>", "</s>", "<|im_end|>"].map(|token| {
        json!({"id": vocabulary[token], "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special, "pre_tokenizer": null,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary, "merges": []}
    })
}

/// Writes a base whose next token depends on the last one alone: each token of a chain is followed by the next.
fn write_base(folder: &Path, chains: &[Vec<String>], change: impl Fn(&mut BTreeMap<String, Vec<f32>>)) {
    let size = vocabulary().len();
    let mut embeddings = vec![0.0; size * size];
    (0..size).for_each(|token| embeddings[token * size + token] = 1.0);
    let mut head = vec![0.0; size * size];
    for chain in chains {
        chain.windows(2).for_each(|pair| head[id(&pair[1]) * size + id(&pair[0])] = 1.0);
    }
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut shapes = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), vec![size, size]),
        ("lm_head.weight".to_owned(), vec![size, size]),
        ("model.norm.weight".to_owned(), vec![size]),
        (layer("input_layernorm"), vec![size]),
        (layer("post_attention_layernorm"), vec![size]),
        (layer("self_attn.o_proj"), vec![size, 8]),
        (layer("mlp.down_proj"), vec![size, 8]),
    ]);
    for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"] {
        shapes.insert(layer(name), vec![8, size]);
    }
    let fill = |(name, shape): (&String, &Vec<usize>)| {
        let value = if shape.len() == 1 { 1.0 } else { 0.0 };
        (name.clone(), vec![value; shape.iter().product()])
    };
    let mut values: BTreeMap<String, Vec<f32>> = shapes.iter().map(fill).collect();
    values.insert("model.embed_tokens.weight".into(), embeddings);
    values.insert("lm_head.weight".into(), head);
    change(&mut values);
    let bytes: BTreeMap<&String, Vec<u8>> = values
        .iter()
        .map(|(name, values)| (name, values.iter().flat_map(|value| value.to_le_bytes()).collect()))
        .collect();
    let tensors =
        bytes.iter().map(|(name, bytes)| (*name, TensorView::new(Dtype::F32, shapes[*name].clone(), bytes).unwrap()));
    fs::create_dir_all(folder).unwrap();
    safetensors::serialize_to_file(tensors, None, &folder.join("model.safetensors")).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": size, "hidden_size": size,
        "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8,
        "max_position_embeddings": POSITIONS, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    fs::write(folder.join("tokenizer_config.json"), json!({"bos_token": "<s>", "eos_token": "</s>"}).to_string())
        .unwrap();
}

/// A folder with a base that answers a prompt that ends in a newline with these tokens, then EOS.
struct Work(TempDir);

impl Work {
    fn answering(answer: &[String]) -> Self {
        let work = Self(tempfile::tempdir().unwrap());
        let chain = [&["<0x0A>".to_owned()], answer, &["</s>".to_owned()]].concat();
        write_base(&work.0.path().join("base"), &[chain], |_| ());
        work
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn generate(&self, options: &[&str]) -> Value {
        let base = self.path("base");
        let fixed = ["generate", "--base", &base, "--max-new-tokens", "12", "--json", "--prompt"];
        run(fixed.into_iter().chain(options.iter().copied())).json()
    }

    /// The exact match of the answer to `日日`.
    fn exact_match(&self, output: &str) -> f64 {
        self.write("t.jsonl", &json!({"input": "日日", "output": output}).to_string());
        let toml = self.write("t.toml", "rows = \"t.jsonl\"\nmetrics = [\"exact_match\"]\nmax_new_tokens = 12\n");
        let base = self.path("base");
        let scores =
            run(["eval", "--base", &base, "--tasks", &toml, "--router", "base", "--split", "all", "--json"]).json();
        scores["results"]["base"]["t"]["metrics"]["exact_match"]["value"].as_f64().unwrap()
    }
}

#[test]
fn characters_of_byte_tokens_are_whole() {
    let work = Work::answering(&[byte_tokens("葛"), byte_tokens("む")].concat());
    // What the tokenizers library decodes prompt and answer to together, without the prompt.
    assert_eq!(work.generate(&["日日\n"])["text"], "葛む");
    assert_eq!(work.exact_match("葛む"), 1.0);
}

#[test]
fn a_wrong_answer_with_an_invalid_byte_is_not_right() {
    let work = Work::answering(&["<0xFF>".to_owned(), "▁cat".to_owned()]);
    // The prompt's bytes are of the run that the invalid byte spoils.
    assert_eq!(work.generate(&["a\n"])["text"], "\u{fffd}\u{fffd} cat");
    assert_eq!(work.exact_match("cat"), 0.0);
    let half = Work::answering(&["▁cat".to_owned(), "<0xE8>".to_owned()]);
    assert_eq!(half.generate(&["a\n"])["text"], " cat\u{fffd}");
    assert_eq!(half.exact_match("cat"), 0.0);
}

#[test]
fn stop_texts_may_be_special_tokens_and_bytes() {
    let words = |tokens: &[&str]| tokens.iter().map(|token| token.to_string()).collect::<Vec<_>>();
    let work = Work::answering(&words(&["▁cat", "<|im_end|>", "▁dog", "<0x0D>", "<0x09>", "c"]));
    let whole = work.generate(&["a\n"]);
    assert_eq!((whole["text"].as_str().unwrap(), whole["finish"].as_str().unwrap()), (" cat dog\r\tc", "eos"));
    for (stop, text, tokens) in [("<|im_end|>", " cat", 2), ("<|im_end|> dog", " cat", 3), ("\r", " cat dog", 4)] {
        let stopped = work.generate(&["a\n", "--stop", "zz", "--stop", stop]);
        assert_eq!(
            (&stopped["text"], &stopped["finish"], &stopped["tokens"]),
            (&json!(text), &json!("stop"), &json!(tokens))
        );
    }
    // A task's stop works alike, and the answer is what stands before it.
    work.write("s.jsonl", &json!({"input": "a", "output": "cat"}).to_string());
    let toml = "rows = \"s.jsonl\"\nmetrics = [\"exact_match\"]\nmax_new_tokens = 12\nstop = [\"<|im_end|>\"]\n";
    let toml = work.write("s.toml", toml);
    let line = format!("eval --base {} --tasks {toml} --router base --split all --json", work.path("base"));
    assert_eq!(self::words(&line).json()["results"]["base"]["s"]["metrics"]["exact_match"]["value"], 1.0);
}

#[test]
fn eval_keeps_prompts_whole_and_says_what_does_not_fit() {
    let work = Work(tempfile::tempdir().unwrap());
    let chain = |tokens: &[&str]| tokens.iter().map(|token| token.to_string()).collect::<Vec<_>>();
    write_base(&work.0.path().join("base"), &[chain(&["c", "▁cat", "</s>"]), chain(&["t", "▁dog", "</s>"])], |_| ());
    let eval = |rows: &str, options: &str| {
        work.write("t.jsonl", rows);
        let toml = "rows = \"t.jsonl\"\nprompt = \"{{ input }}\"\nmetrics = [\"exact_match\"]\nmax_new_tokens = 512\n";
        let toml = work.write("t.toml", toml);
        words(&format!("eval --base {} --tasks {toml} --router base --split all --json {options}", work.path("base")))
    };
    let (first, second) = (json!({"input": "aac", "output": "cat"}), json!({"input": "aat", "output": "dog"}));
    let ran = eval(&format!("{first}\n{second}\n"), "").ok();
    let scores: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(scores["results"]["base"]["t"]["metrics"]["exact_match"]["value"], 1.0);
    let warning =
        "task `t`: of 2 rows, 2 continued with fewer new tokens than max_new_tokens = 512; the base supports 24 tokens";
    assert!(ran.stderr.contains(warning), "{}", ran.stderr);

    let long = json!({"input": "a".repeat(40) + "c", "output": "cat"});
    let warning = eval(&format!("{first}\n{long}\n"), "").ok().stderr;
    let expected = "of 2 rows, 1 scored without the beginning of the prompt, 1 continued without the beginning of the prompt, \
                    1 continued with fewer";
    assert!(warning.contains(expected), "{warning}");

    let answer = json!({"input": "a", "output": "t".repeat(40)});
    let error = eval(&answer.to_string(), "").failed(1);
    assert!(error.contains("row 1: nothing of its prompt would be left"), "{error}");
}

#[test]
fn a_file_of_prompts_becomes_a_file_of_texts() {
    let work = Work::answering(&["▁cat".to_owned(), "▁dog".to_owned()]);
    let input = work.write("in.jsonl", "{\"id\": 7, \"prompt\": \"a\\n\"}\n\n{\"prompt\": \"cc\\n\", \"id\": 8}\n");
    let (base, output) = (work.path("base"), work.path("out/texts.jsonl"));
    let fixed = ["generate", "--base", &base, "--input", &input, "--output", &output, "--json"];
    let summary = run(fixed).json();
    assert_eq!((&summary["prompts"], &summary["texts"], &summary["tokens"]), (&json!(2), &json!(2), &json!(6)));
    let lines = || fs::read_to_string(&output).unwrap();
    let expected = [
        json!({"id": 7, "prompt": "a\n", "text": " cat dog", "tokens": 3, "finish": "eos"}),
        json!({"prompt": "cc\n", "id": 8, "text": " cat dog", "tokens": 3, "finish": "eos"}),
    ];
    assert_eq!(lines(), expected.map(|row| format!("{row}\n")).concat());

    let sampled = |input: &str, n: &str| -> Vec<Value> {
        let fixed = ["generate", "--base", &base, "--input", input, "--output", &output, "--temperature", "20"];
        run(fixed.into_iter().chain(["--top-k", "9", "--max-new-tokens", "6", "-n", n])).ok();
        lines().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (three, one) = (sampled(&input, "3"), sampled(&input, "1"));
    let texts = |row: &Value| row["texts"].as_array().unwrap().clone();
    assert_eq!(
        (texts(&three[0]).len(), &texts(&three[0])[0], &texts(&three[1])[0]),
        (3, &one[0]["text"], &one[1]["text"])
    );
    assert!(texts(&three[0])[0] != texts(&three[0])[1], "{three:?}");
    let first = work.write("first.jsonl", "{\"prompt\": \"a\\n\"}\n");
    assert_eq!(sampled(&first, "1")[0]["text"], one[0]["text"], "a text depends on no other row");

    let taken = work.write("taken.jsonl", "{\"prompt\": \"a\", \"text\": \"b\"}\n");
    let error = run(["generate", "--base", &base, "--input", &taken, "--output", &output]).failed(1);
    assert!(error.contains("taken.jsonl:1: the field `text` would be replaced"), "{error}");

    let other_path = work.path("out/../in.jsonl");
    let error = run(["generate", "--base", &base, "--input", &input, "--output", &other_path]).failed(2);
    assert!(error.contains("--output is the file of --input"), "{error}");
    assert!(fs::read_to_string(&input).unwrap().contains("\"id\": 8"));
}

#[test]
fn logits_that_are_nan_are_an_error() {
    let work = Work(tempfile::tempdir().unwrap());
    write_base(&work.0.path().join("base"), &[], |values| values.get_mut("lm_head.weight").unwrap()[5] = f32::NAN);
    let base = work.path("base");
    for temperature in ["0", "1"] {
        let fixed = ["generate", "--base", &base, "--prompt", "a", "--temperature", temperature];
        assert!(run(fixed).failed(1).contains("NaN"));
    }
}

#[test]
fn a_prompt_that_fails_is_named_and_does_not_lose_the_texts_of_others() {
    let work = Work(tempfile::tempdir().unwrap());
    let size = vocabulary().len();
    write_base(&work.0.path().join("base"), &[], |values| {
        values.get_mut("model.embed_tokens.weight").unwrap()[id("c") * size] = f32::NAN;
    });
    let (base, output) = (work.path("base"), work.path("texts.jsonl"));
    let generate = |rows: &str| {
        let input = work.write("in.jsonl", rows);
        run(["generate", "--base", &base, "--input", &input, "--output", &output, "--max-new-tokens", "2"])
    };
    assert!(generate("{\"prompt\": \"c\"}\n").failed(1).contains("1 prompt failed"));
    assert!(!Path::new(&output).exists(), "where nothing is generated, nothing is created");
    generate("{\"prompt\": \"t\"}\n").ok();
    let before = fs::read_to_string(&output).unwrap();
    let error = generate("{\"prompt\": \"c\"}\n").failed(1);
    assert!(error.contains("1 prompt failed; the first: ") && error.contains("in.jsonl:1"), "{error}");
    assert_eq!(fs::read_to_string(&output).unwrap(), before, "where nothing is generated, nothing is replaced");

    let error = generate("{\"prompt\": \"a\"}\n{\"prompt\": \"c\"}\n{\"prompt\": \"t\"}\n").failed(1);
    assert!(error.contains("1 prompt failed; the first: ") && error.contains("in.jsonl:2"), "{error}");
    let texts = fs::read_to_string(&output).unwrap();
    let prompts = texts.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["prompt"].clone());
    assert_eq!(prompts.collect::<Vec<_>>(), ["a", "t"]);
}

#[cfg(unix)]
#[test]
fn rows_that_cannot_be_written_leave_whole_rows_or_no_file() {
    let work = Work::answering(&["▁cat".to_owned()]);
    let row = json!({ "prompt": "a\n", "note": "n".repeat(400) }).to_string() + "\n";
    let input = work.write("in.jsonl", &row.repeat(9));
    let (base, output) = (work.path("base"), work.path("texts.jsonl"));
    let generate = |limit: &str| {
        let line = format!(
            "ulimit -f {limit}; exec '{}' generate --base '{base}' --input '{input}' --output '{output}'",
            env!("CARGO_BIN_EXE_lorakit")
        );
        Ran::from(Command::new("sh").args(["-c", &line]).output().unwrap())
    };
    let error = generate("0").failed(1);
    assert!(error.contains("texts.jsonl: cannot be written"), "{error}");
    assert!(!Path::new(&output).exists());

    // 512 or 1024 bytes, by the shell: one row or two.
    generate("1").failed(1);
    let texts = fs::read_to_string(&output).unwrap();
    let rows: Vec<Value> = texts.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!((1..=2).contains(&rows.len()) && texts.ends_with('\n'), "{texts}");
    generate("unlimited").ok();
    let nine = fs::read_to_string(&output).unwrap();
    assert_eq!(nine.lines().count(), 9);
    generate("0").failed(1);
    assert_eq!(fs::read_to_string(&output).unwrap(), nine, "what was there stays until a row takes its place");
    let names = fs::read_dir(work.0.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| !name.starts_with('.')), "no temporary file is left");
}
