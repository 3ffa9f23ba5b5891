//! Chat data through the binary: pico with a chat template, trained on conversations and asked by them.
#![allow(clippy::unwrap_used)]

mod binary;

use binary::{assert_contains, run, words};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// `role: content`, each reply with EOS after it and each other message with a newline.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role + ': ' + m.content + (eos_token if m.role == 'assistant' else '\\n') }}\
                        {% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";

/// pico with a chat template, and some files of rows.
struct Chat {
    folder: tempfile::TempDir,
}

impl Chat {
    fn new() -> Self {
        let chat = Self { folder: tempfile::tempdir().unwrap() };
        words(&format!("base write --out {}", chat.path("base"))).ok();
        fs::write(Path::new(&chat.path("base")).join("chat_template.jinja"), TEMPLATE).unwrap();
        let plurals = ["cat", "dog", "box", "toy", "bus", "key", "hat", "egg", "cup", "car", "pen", "map"];
        let rows = |row: fn(&str) -> Value| plurals.iter().map(|word| format!("{}\n", row(word))).collect::<String>();
        chat.write(
            "messages.jsonl",
            &rows(|word| {
                json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"},
                {"role": "user", "content": format!("{word}?")}, {"role": "assistant", "content": format!("{word}s")}]})
            }),
        );
        chat.write("plain.jsonl", &rows(|word| json!({"input": format!("{word}?"), "output": format!("{word}s")})));
        chat.write(
            "dpo.jsonl",
            &rows(|word| json!({"prompt": format!("{word}?"), "chosen": format!(" {word}s"), "rejected": " no"})),
        );
        chat
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn words(&self, text: &str) -> binary::Ran {
        let text = text.replace('@', &format!("{}/", self.folder.path().display()));
        words(&text)
    }
}

#[test]
fn a_library_is_trained_on_conversations_and_asked_by_them() {
    let chat = Chat::new();
    let train = "train-experts --base @base --library @library -q --set max_steps=30 learning_rate=1e-2 max_grad_norm=1 \
                 eval_steps=0";
    chat.words(&format!("{train} --tasks @messages.jsonl")).ok();
    let record = fs::read_to_string(chat.path("library/experts/messages/expert.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    let template = record["tasks"][0]["chat_template"].as_str().unwrap();
    assert_eq!(template.len(), 64);

    let eval = "eval --base @base --library @library --split all --json";
    let scores = chat.words(&format!("{eval} --tasks @messages.jsonl --router base expert:messages")).json();
    let loss = |router: &str| scores["results"][router]["messages"]["metrics"]["loss"]["value"].as_f64().unwrap();
    assert!(loss("expert:messages") < 0.7 * loss("base"), "{scores}");

    // Under another form than the expert's there is a warning; plain rows under the same template need --chat.
    let plain = format!("{eval} --tasks @plain.jsonl --router expert:messages");
    assert_contains(&chat.words(&plain).ok().stderr, &["`plain` is scored under no chat template", &template[..8]]);
    assert!(!chat.words(&format!("{plain} --chat")).ok().stderr.contains("is scored under"));

    let generate = "generate --base @base --library @library --router expert:messages --max-new-tokens 8 --json";
    let answer = chat.words(&format!("{generate} --chat --prompt cat?")).json();
    assert!(answer["tokens"].as_u64().unwrap() <= 8, "{answer}");
    let other = chat.words(&format!("{train} loss=last --tasks @messages.jsonl"));
    assert_eq!(other.code, 1, "the loss is a setting that decides the weights");
    assert_contains(&(other.stdout + &other.stderr), &["loss"]);
}

#[test]
fn what_is_not_used_is_said() {
    let chat = Chat::new();
    let shown = chat.words("task show @dpo.jsonl --base @base --split all --json");
    assert_contains(&shown.stderr, &["task `dpo`", "only `chosen` is used"]);
    let shown = shown.json();
    assert_eq!((&shown["tasks"][0]["prompt"], &shown["tasks"][0]["target"]), (&json!("cat?"), &json!(" cats")));
    let shown = chat.words("task show @plain.jsonl --base @base --split all --json --chat").json();
    let tokens = shown["tasks"][0]["tokens"].as_array().unwrap();
    let text = |loss: bool| -> String {
        tokens.iter().filter(|token| token["loss"] == loss).map(|token| token["token"].as_str().unwrap()).collect()
    };
    assert_eq!((text(false).as_str(), text(true).as_str()), ("user: cat?\nassistant: ", "cats</s>"));
}

#[test]
fn a_base_without_a_template_says_so() {
    let chat = Chat::new();
    let cut = chat.words("task show @plain.jsonl --base @base --split all --max-length 4").ok().stderr;
    assert_contains(&cut, &["row 1: --max-length 4 cuts off"]);
    let error = chat.words("task show @messages.jsonl --base pico --split all").failed(1);
    assert_contains(&error, &["row 1", "chat template: the base has none", "chat_template.jinja"]);
    let error = run(["generate", "--base", "pico", "--chat", "--prompt", "hi"]).failed(1);
    assert_contains(&error, &["chat template: the base has none"]);
    let usage = run(["generate", "--base", "pico", "--system", "Be brief.", "--prompt", "hi"]).failed(2);
    assert_contains(&usage, &["--chat"]);
}
