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

/// pico as it is has no chat template.
#[test]
fn a_conversation_without_a_template_is_an_error_of_its_task() {
    let chat = Chat::new();
    let place = format!("error: task `messages` ({}): row 1: chat template", chat.path("messages.jsonl"));
    let error = chat.words("task show @messages.jsonl --base pico").failed(1);
    assert_contains(&error, &[&place]);
    let train = "train-experts -q --base pico --library @l --tasks @plain.jsonl other=@plain.jsonl --set max_steps=1";
    chat.words(train).ok();
    let merge = "merge --library @l --base pico --method cat_learned --fit @messages.jsonl --out @merged";
    let error = chat.words(merge).failed(1);
    assert!(
        error.lines().any(|line| line.starts_with("error: task `messages` (")),
        "the library is not to blame: {error}"
    );
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
fn an_expert_that_answers_as_its_template_writes_replies_is_right() {
    let chat = Chat::new();
    let thinking = "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}";
    let template =
        TEMPLATE.replace("{{ m.role + ': ' + m.content", &format!("{{{{ m.role + ': ' }}}}{thinking}{{{{ m.content"));
    chat.write("base/chat_template.jinja", &template);
    let messages =
        |i: usize| json!([{"role": "user", "content": format!("{i}?")}, {"role": "assistant", "content": "yes"}]);
    chat.write("yes.jsonl", &(0..12).map(|i| format!("{}\n", json!({"messages": messages(i)}))).collect::<String>());
    chat.write(
        "plain.jsonl",
        &(0..12).map(|i| format!("{}\n", json!({"input": format!("{i}?"), "output": "yes"}))).collect::<String>(),
    );
    let train = "train-experts --base @base --library @library -q --set max_steps=30 learning_rate=1e-2 max_grad_norm=1 \
                 eval_steps=0 --tasks @yes.jsonl";
    chat.write("stopped.toml", "rows = \"plain.jsonl\"\nstop = [\"\\n\"]\n");
    chat.words(train).ok();
    let eval = "eval --base @base --library @library --router expert:yes --tasks @yes.jsonl @plain.jsonl @stopped.toml --chat \
                --split all";
    let scores = chat.words(&format!("{eval} --json --log-samples --out @scores")).json();
    for task in ["yes", "plain", "stopped"] {
        assert_eq!(scores["results"]["expert:yes"][task]["metrics"]["exact_match"]["value"], 1.0, "{scores}");
    }
    let samples = fs::read_to_string(chat.path("scores/samples_expert_yes_yes.jsonl")).unwrap();
    assert_contains(&samples, &["</think>"]);
}

#[test]
fn replies_that_end_with_no_stop_token_are_said() {
    let chat = Chat::new();
    let train = |library: &str| {
        let train = "train-experts --base @base --set max_steps=1 eval_steps=0 --tasks @messages.jsonl";
        chat.words(&format!("{train} --library @{library}")).ok().stderr
    };
    assert!(!train("ended").contains("stops"));
    chat.write("base/chat_template.jinja", &TEMPLATE.replace("eos_token", "'\\n'"));
    let stderr = train("endless");
    assert_eq!(stderr.matches("with no token at which generation stops").count(), 1, "{stderr}");
    assert_contains(&stderr, &["task `messages`", "{{ eos_token }}", "--stop"]);
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

/// Trains experts of the two tasks of prompt and answer that [`Chat`] and this write.
fn train_pairs(chat: &Chat, settings: &str) {
    let rows = (0..12).map(|i| format!("{}\n", json!({"input": format!("+{i}"), "output": format!("{}", i + 1)})));
    chat.write("plus.jsonl", &rows.collect::<String>());
    let tasks = "--tasks @plain.jsonl @plus.jsonl";
    let steps = "--set max_steps=30 learning_rate=1e-2 max_grad_norm=1 eval_steps=0";
    chat.words(&format!("train-experts -q --base @base --library @pairs {tasks} {steps} {settings}")).ok();
}

#[test]
fn routers_know_the_prompts_that_experts_were_trained_on() {
    let chat = Chat::new();
    train_pairs(&chat, "--chat");
    let library = "--base @base --library @pairs";
    // Whoever fits it, the router is fitted to the same rows.
    chat.words(&format!("generate {library} --router tp --chat --prompt cat? --max-new-tokens 2")).ok();
    let eval =
        format!("eval {library} --router tp oracle --tasks @plain.jsonl @plus.jsonl --split all --json --metrics loss");
    let ran = chat.words(&format!("{eval} --chat")).ok();
    assert!(!ran.stderr.contains("fitting to rows"), "{}", ran.stderr);
    let scores: Value = serde_json::from_str(&ran.stdout).unwrap();
    for task in ["plain", "plus"] {
        let loss = |router: &str| scores["results"][router][task]["metrics"]["loss"]["value"].as_f64().unwrap();
        assert!((loss("tp") - loss("oracle")).abs() < 1e-4, "{task}: {scores}");
    }
    assert!(!chat.words(&eval).ok().stderr.contains("fitting to rows"), "nor do options of the scored rows matter");
    let explain = format!("explain {library} --router tp --json --prompt cat?");
    let explained = chat.words(&format!("{explain} --chat"));
    assert!(!explained.stderr.contains("warning"), "{}", explained.stderr);
    assert!(explained.json()["tokens"].as_array().unwrap().len() > 4);
    assert_contains(&chat.words(&explain).ok().stderr, &["the prompt is given under no chat template", "--chat"]);
    let routers = fs::read_dir(chat.path("pairs/routers")).unwrap();
    assert_eq!(routers.count(), 1);
}

#[test]
fn rows_of_merges_and_adapters_go_through_the_template_on_request() {
    let chat = Chat::new();
    train_pairs(&chat, "--chat");
    let record = |place: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(chat.path(&format!("{place}/expert.json"))).unwrap()).unwrap()
    };
    let merge = |method: &str, more: &str| {
        let fixed = "merge --library @pairs --base @base --overwrite --out @merged";
        chat.words(&format!("{fixed} --method {method} {more}"))
    };
    let other = ["`plain` is fitted to under no chat template", "2 of 2 experts"];
    assert_contains(&merge("lorahub:rows=3", "--fit @plain.jsonl").ok().stderr, &other);
    assert_eq!(record("merged")["tasks"][0]["chat_template"], Value::Null);
    let ran = merge("lorahub:rows=3", "--fit @plain.jsonl --chat").ok();
    assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
    assert_eq!(record("merged")["tasks"][0]["chat_template"].as_str().unwrap().len(), 64);
    assert_contains(&merge("cat", "--chat").failed(2), &["--chat", "does not fit weights"]);

    let adapt = |more: &str| {
        let fixed = "adapt --library @pairs --base @base --tasks other=@plain.jsonl --out @adapted --restart --method";
        chat.words(&format!("{fixed} {more}"))
    };
    assert_contains(&adapt("cat:steps=2").ok().stderr, &["`other` is fitted to under no chat template"]);
    assert!(!adapt("cat:steps=2 --chat").ok().stderr.contains("chat template"));
    let record = record("adapted/experts/other");
    assert_eq!(record["tasks"][0]["chat_template"].as_str().unwrap().len(), 64);
    assert_eq!(record["settings"]["settings"], json!({"chat": true}));
    assert_contains(&adapt("lorahub --set chat=true").failed(2), &["lorahub trains nothing", "--chat"]);
    assert!(!adapt("mean --chat --set max_steps=1").ok().stderr.contains("chat template"));
}

#[test]
fn experts_that_never_saw_bos_are_not_given_one_silently() {
    let chat = Chat::new();
    train_pairs(&chat, "--bos never");
    let library = "--base @base --library @pairs";
    let eval = format!("eval {library} --router tp oracle --tasks @plain.jsonl --split all --json --metrics loss");
    let loss = |ran: &binary::Ran, router: &str| {
        let scores: Value = serde_json::from_str(&ran.stdout).unwrap();
        scores["results"][router]["plain"]["metrics"]["loss"]["value"].as_f64().unwrap()
    };
    let (auto, never) = (chat.words(&eval).ok(), chat.words(&format!("{eval} --bos never")).ok());
    let other = ["with BOS, but 2 of 2 experts, such as `plain`, were trained without", "--bos never"];
    assert_contains(&auto.stderr, &other);
    assert!(!never.stderr.contains("BOS") && !never.stderr.contains("fitting to rows"), "{}", never.stderr);
    assert!(loss(&never, "oracle") < loss(&auto, "oracle"), "{}", auto.stdout);
    assert!((loss(&never, "tp") - loss(&never, "oracle")).abs() < 1e-4, "{}", never.stdout);

    for command in [
        format!("generate {library} --router expert:plain --prompt cat? --max-new-tokens 2"),
        "generate --base @base --adapter @pairs/experts/plain --prompt cat? --max-new-tokens 2".to_owned(),
        format!("explain {library} --router arrow --prompt cat?"),
        format!("adapt {library} --method cat:steps=1 --tasks other=@plain.jsonl --restart --out @adapted"),
        format!("merge {library} --method lorahub:rows=2 --fit @plain.jsonl --overwrite --out @merged"),
    ] {
        assert_contains(&chat.words(&command).ok().stderr, &["with BOS, but", "trained without"]);
        assert!(!chat.words(&format!("{command} --bos never")).ok().stderr.contains("BOS"), "{command}");
    }
    // What is made of them knows it.
    let merged = "generate --base @base --adapter @merged --prompt cat? --max-new-tokens 2";
    assert_contains(&chat.words(merged).ok().stderr, &["with BOS, but", "trained without"]);

    chat.words(&format!("merge {library} --method cat --into-base --out @whole")).ok();
    let whole = "generate --base @whole --prompt cat? --max-new-tokens 2";
    assert_contains(&chat.words(whole).ok().stderr, &["with BOS, but the base was trained without"]);

    // Where the tokenizer puts no BOS, there is nothing to say.
    let file = chat.path("base/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    tokenizer["post_processor"] = Value::Null;
    fs::write(file, tokenizer.to_string()).unwrap();
    assert!(!chat.words(&eval).ok().stderr.contains("BOS"));
}

#[test]
fn tasks_are_embedded_as_their_experts_were_trained() {
    let chat = Chat::new();
    train_pairs(&chat, "chat=true bos=never");
    let cluster = |options: &str| {
        let tasks = "--library @pairs --base @base --tasks @plain.jsonl @plus.jsonl";
        let ran = chat.words(&format!("cluster --method embedding -k 2 {tasks} --out @c.json {options}")).ok();
        let clusters: Value = serde_json::from_str(&fs::read_to_string(chat.path("c.json")).unwrap()).unwrap();
        (ran.stderr, clusters["settings"].clone())
    };
    let (said, settings) = cluster("");
    assert_contains(
        &said,
        &["`plain` is embedded under no chat template", "`plus` is embedded under no chat", "--chat"],
    );
    assert_eq!((&settings["chat"], &settings["bos"]), (&Value::Null, &Value::Null));
    let (said, settings) = cluster("--chat --bos never");
    assert!(!said.contains("is embedded under"), "{said}");
    assert_eq!((&settings["chat"], &settings["bos"]), (&json!(true), &json!("never")));
}
