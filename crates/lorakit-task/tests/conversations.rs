//! Rows of conversations as tokens, with the tokens that carry loss.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use lorakit_task::{BosTokens, Example, LossTokens, ReplyOpening, ReplySource, RowEncoding, Split, Task, Tokenizer};
use serde_json::{Value, json};

const CHATML: &str = include_str!("fixtures/chat_templates/chatml.jinja");
const GEMMA: &str = include_str!("fixtures/chat_templates/gemma.jinja");
const LLAMA_3: &str = include_str!("fixtures/chat_templates/llama_3.jinja");
const THINKING: &str = include_str!("fixtures/chat_templates/thinking.jinja");

/// The last reply begins with an empty block of reasoning, as Qwen3's does.
const EMPTY_THINKING: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
    {% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
/// A reply has channels, as those of gpt-oss: reasoning, which ends with `</s>`, and the content, with `<|eot_id|>`.
const CHANNELS: &str = "{% for m in messages %}{% if m.role == 'assistant' %}\
    {% if m.thinking %}<|im_start|>assistant<s>analysis<|im_end|>{{ m.thinking }}</s>{% endif %}\
    <|im_start|>assistant<s>final<|im_end|>{{ m.content }}<|eot_id|>\
    {% else %}<|im_start|>{{ m.role }}<|im_end|>{{ m.content }}</s>{% endif %}{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant{% endif %}";

/// The tokens that the templates write.
const SPECIAL: [&str; 9] = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
];

/// A tokenizer of one token per character, whose post-processor begins texts with `<s>`, with a chat template.
fn tokenizer(template: Option<&str>) -> Tokenizer {
    let mut vocabulary: Vec<String> = SPECIAL.map(str::to_owned).to_vec();
    vocabulary.extend(std::iter::once('\n').chain(' '..='~').map(String::from));
    let added = SPECIAL.iter().enumerate().map(|(id, token)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true})
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": null, "decoder": {"type": "Fuse"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary.iter().cloned().enumerate().map(|(id, token)| (token, json!(id)))
                .collect::<serde_json::Map<_, _>>(),
            "merges": []}
    });
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| fs::write(folder.path().join(name), text).unwrap();
    write("tokenizer.json", tokenizer.to_string());
    write("tokenizer_config.json", json!({"bos_token": "<s>", "eos_token": "</s>"}).to_string());
    if let Some(template) = template {
        write("chat_template.jinja", template.to_owned());
    }
    Tokenizer::open(folder.path()).unwrap()
}

/// A tokenizer that knows one letter, begins no text with BOS, and skips characters that it does not know.
fn tokenizer_of_one_letter() -> Tokenizer {
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"</s>": 0, "a": 1}, "merges": []}
    });
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("tokenizer.json", &tokenizer.to_string());
    write("tokenizer_config.json", &json!({"eos_token": "</s>"}).to_string());
    write("chat_template.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}");
    Tokenizer::open(folder.path()).unwrap()
}

fn task(rows: &[Value]) -> Task {
    task_of(&rows.iter().map(|row| format!("{row}\n")).collect::<String>())
}

/// The task of a file of rows.
fn task_of(text: &str) -> Task {
    load(text).unwrap().remove(0)
}

fn load(text: &str) -> lorakit_task::Result<Vec<Task>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    fs::write(&path, text).unwrap();
    Task::load(&path.display().to_string(), None)
}

fn encode(row: Value, tokenizer: &Tokenizer, max_length: usize) -> lorakit_task::Result<Example> {
    // A second row, since one object with lists of objects is no row of its own.
    let task = task(&[row, json!({"messages": [{"role": "assistant", "content": "-"}]})]);
    Example::encode(task.rows(Split::All, None).unwrap()[0], tokenizer, max_length)
}

/// The text of the tokens, those that carry loss in brackets.
fn marked(example: &Example, tokenizer: &Tokenizer) -> String {
    let (mut text, mut before) = (String::new(), false);
    for piece in example.token_views(tokenizer) {
        if piece.loss != before {
            text.push(if piece.loss { '[' } else { ']' });
        }
        text.push_str(&piece.token);
        before = piece.loss;
    }
    if before { text + "]" } else { text }
}

fn messages(texts: &[(&str, &str)]) -> Value {
    json!(texts.iter().map(|(role, content)| json!({"role": role, "content": content})).collect::<Vec<_>>())
}

fn two_turns() -> Value {
    json!({"messages": messages(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")])})
}

fn with_loss(template: &str, loss: LossTokens) -> Tokenizer {
    tokenizer(Some(template)).with_encoding(RowEncoding { loss, ..RowEncoding::default() })
}

#[test]
fn every_reply_carries_loss_with_the_token_that_ends_its_turn() {
    let shown = |template, loss| {
        let tokenizer = with_loss(template, loss);
        marked(&encode(two_turns(), &tokenizer, 999).unwrap(), &tokenizer)
    };
    let user = |text: &str| format!("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n");
    let (first, second) = (user("a"), user("c"));
    assert_eq!(shown(CHATML, LossTokens::Assistant), format!("{first}[b<|im_end|>]\n{second}[d<|im_end|>]\n"));
    assert_eq!(shown(CHATML, LossTokens::Last), format!("{first}b<|im_end|>\n{second}[d<|im_end|>]\n"));
    // Nothing predicts the first token.
    let rest = first.strip_prefix("<|im_start|>").unwrap();
    assert_eq!(shown(CHATML, LossTokens::All), format!("<|im_start|>[{rest}b<|im_end|>\n{second}d<|im_end|>\n]"));
    // BOS once, by the template.
    assert!(shown(LLAMA_3, LossTokens::Assistant).starts_with("<s><|start_header_id|>user"));
    assert!(shown(LLAMA_3, LossTokens::Assistant).ends_with("<|end_header_id|>\n\n[d<|eot_id|>]"));
    // `<|im_end|>` ends a turn, but no generation.
    let stops = |template: &str| encode(two_turns(), &tokenizer(Some(template)), 999).unwrap().has_stop_token;
    assert_eq!(
        [CHATML, &CHATML.replace("<|im_end|>", "</s>"), &CHATML.replace("<|im_end|>", "")].map(stops),
        [false, true, false]
    );
    let never = RowEncoding { bos: BosTokens::Never, ..RowEncoding::default() };
    let without_bos = tokenizer(Some(LLAMA_3)).with_encoding(never);
    let shown_without = marked(&encode(two_turns(), &without_bos, 999).unwrap(), &without_bos);
    assert!(shown_without.starts_with("<|start_header_id|>user"));
    assert!(shown(GEMMA, LossTokens::Assistant).contains("model\n[b<end_of_turn>]\n<start_of_turn>user"));
}

#[test]
fn a_conversation_without_any_token_is_refused() {
    let tokenizer = tokenizer_of_one_letter();
    assert_eq!(tokenizer.bos(), None);
    let row = |reply: &str| json!({"messages": messages(&[("user", "é"), ("assistant", reply)])});
    let error = encode(row("ü"), &tokenizer, 9).unwrap_err();
    assert!(format!("{:#}", anyhow::Error::from(error)).contains("has no token for anything in the conversation"));
    assert_eq!(encode(row("aü"), &tokenizer, 9).unwrap().tokens, [1]);
}

/// OpenAI's fine-tuning format; ShareGPT rows have it too.
#[test]
fn replies_of_weight_0_carry_no_loss() {
    let tokenizer = with_loss(CHATML, LossTokens::Assistant);
    let (ask, reply) = (json!({"role": "user", "content": "a"}), json!({"role": "assistant", "content": "d"}));
    let unlearned = json!({"role": "assistant", "content": "b", "weight": 0});
    for weight in [json!(0), json!("0"), json!(false)] {
        let unlearned = json!({"role": "assistant", "content": "b", "weight": weight});
        let row = json!({"messages": [ask, unlearned, ask, reply]});
        let shown = marked(&encode(row, &tokenizer, 999).unwrap(), &tokenizer);
        assert!(shown.contains("b<|im_end|>") && !shown.contains("[b") && shown.contains("[d<|im_end|>]"), "{shown}");
    }
    let turn = |from: &str, weight: u32| json!({"from": from, "value": "x", "weight": weight});
    let turns = json!({"conversations": [turn("human", 1), turn("gpt", 0), turn("human", 1), turn("gpt", 1)]});
    let shown = marked(&encode(turns, &tokenizer, 999).unwrap(), &tokenizer);
    assert_eq!(shown.matches("[x<|im_end|>]").count(), 1, "{shown}");
    let written = r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0.00},
        {"from": "human", "value": "a"}, {"from": "gpt", "value": "d"}]}"#;
    let written = task_of(&format!("[{written}, {written}]"));
    let example = Example::encode(written.rows(Split::All, None).unwrap()[0], &tokenizer, 999).unwrap();
    let shown = marked(&example, &tokenizer);
    assert!(!shown.contains("[b") && shown.contains("[d<|im_end|>]"), "{shown}");
    let error = encode(json!({"messages": [ask, unlearned]}), &tokenizer, 999).unwrap_err();
    assert!(format!("{:#}", anyhow::Error::from(error)).contains("the last reply has `weight` 0"));
}

/// LLaMA-Factory's form of a call, and of the messages that `datasets` fills with nulls.
#[test]
fn calls_of_functions_are_replies() {
    let template = "{% for m in messages %}{{ m.role }}:{{ m.content }}{% for call in m.tool_calls %}\
                    <{{ call.function.name }}({{ call.function.arguments | tojson }})>{% endfor %}</s>{% endfor %}\
                    {% if add_generation_prompt %}assistant:{% endif %}";
    let tokenizer = self::tokenizer(Some(template));
    let shown = |row: Value| marked(&encode(row, &tokenizer, 999).unwrap(), &tokenizer);
    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    let turns = |call: &str| {
        json!({"conversations": [turn("human", "a"), turn("function_call", call),
        turn("observation", "7"), turn("gpt", "b")]})
    };
    let call = r#"{"name": "f", "arguments": {"x": 1}}"#;
    let expected = "user:a</s>assistant:[<f({\"x\": 1})></s>]tool:7</s>assistant:[b</s>]";
    assert_eq!(shown(turns(call)), expected);
    assert_eq!(shown(turns(&format!("[{call}]"))), expected);
    let unaware = Some("{% for m in messages %}{{ m.content }}</s>{% endfor %}");
    let error = encode(turns(call), &self::tokenizer(unaware), 999).unwrap_err();
    assert!(format!("{:#}", anyhow::Error::from(error)).contains("does not render `tool_calls`"));
    // The function's name is elsewhere.
    let named = r#"{"name": "a", "arguments": {"x": 1}}"#;
    let error = encode(turns(named), &self::tokenizer(unaware), 999).unwrap_err();
    assert!(format!("{:#}", anyhow::Error::from(error)).contains("does not render `tool_calls`"));
    // Of replies that are not learned nothing need be left.
    let last = RowEncoding { loss: LossTokens::Last, ..RowEncoding::default() };
    assert!(encode(turns(call), &self::tokenizer(unaware).with_encoding(last), 999).is_ok());
    let calls = json!([{"type": "function", "function": {"name": "f", "arguments": {}}}]);
    let unlearned = json!({"role": "assistant", "content": "", "tool_calls": calls, "weight": 0});
    let [ask, reply] = [("user", "a"), ("assistant", "b")].map(|(role, text)| json!({"role": role, "content": text}));
    let messages = [&ask, &unlearned, &ask, &reply];
    assert!(encode(json!({ "messages": messages }), &self::tokenizer(unaware), 999).is_ok());
    // What is no call is the reply as it stands.
    assert!(shown(turns("f(1)")).contains("assistant:[f(1)</s>]tool"));
    let filled = json!([{"role": "user", "content": "a", "tool_calls": null}, {"role": "assistant", "content": "b", "tool_calls": null}]);
    assert_eq!(shown(json!({"messages": filled})), "user:a</s>assistant:[b</s>]");
    let empty = json!({"messages": [{"role": "user", "content": null, "tool_calls": null}]});
    assert!(load(&format!("{empty}\n{empty}\n")).is_err());
}

/// Calls between special tokens, as Mistral's templates write them.
#[test]
fn a_reply_of_text_and_calls_ends_after_the_calls() {
    let template = "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>{% else %}\
                    {{ m.content }}{% for call in m.tool_calls %}<|eot_id|>{{ call.function.name }}<end_of_turn>\
                    {{ call.function.arguments | tojson }}{% endfor %}</s>{% endif %}{% endfor %}";
    let call = |arguments: Value| {
        let calls = json!([{"type": "function", "function": {"name": "f", "arguments": arguments}}]);
        let reply = json!({"role": "assistant", "content": "Paris.", "tool_calls": calls});
        json!({"messages": [{"role": "user", "content": "a"}, reply]})
    };
    let shown = |template: &str, row: Value| {
        let tokenizer = self::tokenizer(Some(template));
        marked(&encode(row, &tokenizer, 999).unwrap(), &tokenizer)
    };
    let reply = |arguments: &str| format!("<|im_start|>a<|im_end|>[Paris.<|eot_id|>f<end_of_turn>{arguments}</s>]");
    assert_eq!(shown(template, call(json!({"x": 1}))), reply("{\"x\": 1}"));
    // A template that leaves them out.
    let drops = |template: &str| encode(call(json!({})), &self::tokenizer(Some(template)), 999).unwrap().drops_calls;
    assert_eq!([template, CHATML].map(drops), [false, true]);
    assert_eq!(shown(template, call(json!({"x": "Paris."}))), reply("{\"x\": \"Paris.\"}"));
    // A null of a call is its own.
    assert_eq!(shown(template, call(json!({"x": null}))), reply("{\"x\": null}"));
    let endless = reply("{\"x\": 1}").replace("</s>", "");
    assert_eq!(shown(&template.replace("</s>", ""), call(json!({"x": 1}))), endless);
}

#[test]
fn a_reply_ends_after_its_content_wherever_else_that_text_is() {
    let shown = |template: &str, reply: Value| {
        let tokenizer = tokenizer(Some(template));
        let row = json!({"messages": [{"role": "user", "content": "a"}, reply]});
        marked(&encode(row, &tokenizer, 999).unwrap(), &tokenizer)
    };
    let prompt = "<|im_start|>user<|im_end|>a</s>";
    let reasoned = json!({"role": "assistant", "content": "4", "thinking": "2+2=4"});
    let expected =
        "<|im_start|>assistant[<s>analysis<|im_end|>2+2=4</s><|im_start|>assistant<s>final<|im_end|>4<|eot_id|>]";
    assert_eq!(shown(CHANNELS, reasoned), format!("{prompt}{expected}"));
    // Nor is the content there as it was given.
    let changed = CHANNELS.replace("{{ m.content }}<|eot_id|>", "{{ m.content | upper }}<|eot_id|>");
    let expected = "<|im_start|>assistant[<s>final<|im_end|>D<|eot_id|>]";
    assert_eq!(shown(&changed, json!({"role": "assistant", "content": "d"})), format!("{prompt}{expected}"));
    // A template that begins the next turn, asked or not.
    let next = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                {{ '<|im_start|>assistant\\n' }}";
    let expected = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[s<|im_end|>]\n<|im_start|>assistant\n";
    assert_eq!(shown(next, json!({"role": "assistant", "content": "s"})), expected);
}

/// As Cohere's templates have it: a token ends the response, and another the turn.
#[test]
fn the_token_that_ends_the_turn_is_learned_where_others_come_first() {
    let shown = |ending: &str| {
        let template = CHATML.replace("<|im_end|>", ending);
        let tokenizer = tokenizer(Some(&template));
        let example = encode(two_turns(), &tokenizer, 999).unwrap();
        assert_eq!(example.reply_source, ReplySource::Prefixes, "{ending}");
        marked(&example, &tokenizer)
    };
    let turn = |user: &str, reply: &str, ending: &str, after: &str| {
        format!("<|im_start|>user\n{user}{ending}{after}\n<|im_start|>assistant\n[{reply}{ending}]{after}\n")
    };
    for (ending, after) in [
        ("<|eot_id|></s>", ""),
        ("<|eot_id|>\n</s>", ""),
        ("<|eot_id|><|im_end|></s>", ""),
        ("</s>", "<|eot_id|>"),
        ("<|eot_id|>", "<|im_end|>"),
    ] {
        let expected = turn("a", "b", ending, after) + &turn("c", "d", ending, after);
        assert_eq!(shown(&format!("{ending}{after}")), expected);
    }
    // A token that ends the conversation ends the last turn alone.
    let tokenizer = tokenizer(Some(&format!("{CHATML}{{% if not add_generation_prompt %}}</s>{{% endif %}}")));
    let shown = marked(&encode(two_turns(), &tokenizer, 999).unwrap(), &tokenizer);
    assert!(shown.contains("[b<|im_end|>]\n") && shown.ends_with("[d<|im_end|>\n</s>]"), "{shown}");
}

/// Mistral's form of reasoning.
#[test]
fn parts_of_reasoning_are_for_templates_that_take_parts() {
    let parts = json!([{"type": "thinking", "thinking": "2+2"}, {"type": "text", "text": "4"}]);
    let row = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": parts}]});
    let template = "{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}\
                    {% for part in m.content %}{% if part.type == 'thinking' %}<{{ part.thinking }}>{% else %}{{ part.text }}\
                    {% endif %}{% endfor %}{% endif %}</s>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    let tokenizer = self::tokenizer(Some(template));
    assert_eq!(marked(&encode(row.clone(), &tokenizer, 999).unwrap(), &tokenizer), "user:a</s>assistant:[<2+2>4</s>]");
    let error = encode(row, &self::tokenizer(Some(CHATML)), 999).unwrap_err();
    let error = format!("{:#}", anyhow::Error::from(error));
    assert!(error.contains("without parts of `thinking`; give the reasoning as `reasoning_content`"), "{error}");
}

/// As the first release of Meta-Llama-3-Instruct has it: what it begins ends in a special token.
#[test]
fn a_template_may_always_begin_another_reply() {
    let template = "{% for m in messages %}{% set content = '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' ~ \
                    m.content | trim ~ '<|eot_id|>' %}{{ content }}{% endfor %}\
                    {{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}";
    let tokenizer = tokenizer(Some(template));
    let example = encode(two_turns(), &tokenizer, 999).unwrap();
    assert_eq!(example.reply_source, ReplySource::Prefixes);
    let header = |role: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n");
    let (user, reply) = (header("user"), header("assistant"));
    let expected = format!("{user}a<|eot_id|>{reply}[b<|eot_id|>]{user}c<|eot_id|>{reply}[d<|eot_id|>]{reply}");
    assert_eq!(marked(&example, &tokenizer), expected);
}

#[test]
fn what_a_template_writes_before_a_reply_is_no_part_of_the_answer() {
    let of = |row: Value, template: &str, chat: bool| {
        let tokenizer = tokenizer(Some(template)).with_encoding(RowEncoding { chat, ..RowEncoding::default() });
        let task = task(&[row.clone(), row]);
        ReplyOpening::new(task.rows(Split::All, None).unwrap()[0], &tokenizer).unwrap()
    };
    let opening = of(two_turns(), EMPTY_THINKING, false);
    for text in
        ["<think>\n\n</think>\n\nParis", "<think>\nRome or Paris.\n</think>\n\nParis", "Rome?</think>Paris", "Paris"]
    {
        assert_eq!(opening.answer(text).trim(), "Paris");
    }
    assert_eq!(opening.accepted("<think>x</think>Paris"), "Paris");
    assert_eq!(opening.accepted("<think>x</think>\n"), "<think>x</think>\n", "there is nothing else");
    // Generated text lacks special tokens.
    assert_eq!(of(two_turns(), CHANNELS, false).answer("final4"), "4");
    assert_eq!(of(two_turns(), CHATML, false).answer(" Paris"), " Paris");
    let plain = json!({"input": "a", "output": "b"});
    let text = "<think>\n\n</think>\n\nParis";
    assert_eq!(of(plain.clone(), EMPTY_THINKING, false).answer(text), text);
    assert_eq!(of(plain, EMPTY_THINKING, true).answer(text).trim(), "Paris");
}

/// JSON says what it means; of Parquet, which fills objects up with nulls, see the tests of `messages`.
#[test]
fn nulls_within_tools_reach_the_template() {
    let tokenizer = tokenizer(Some("{{ tools | tojson }}{% for m in messages %}{{ m | tojson }}</s>{% endfor %}"));
    let messages = json!([{"role": "user", "content": "a", "name": null}, {"role": "assistant", "content": "b"}]);
    let row = json!({"messages": messages, "tools": [{"name": "f", "parameters": {"x": {"default": null}}}]});
    let shown = marked(&encode(row, &tokenizer, 999).unwrap(), &tokenizer);
    assert!(shown.contains("\"parameters\": {\"x\": {\"default\": null}}"), "{shown}");
    assert_eq!(shown.matches("null").count(), 1, "{shown}");
}

#[test]
fn columns_of_system_texts_and_history_are_said_to_be_unused() {
    let row = |system: &str| json!({"instruction": "a", "output": "b", "system": system});
    assert!(task(&[row("Be a pirate."), row("")]).warnings[0].contains("column `system` is not used"));
    assert!(task(&[row(""), row("")]).warnings.is_empty());
    // Messages have a place for them.
    let [ask, reply] = [json!([{"role": "user", "content": "a"}]), json!([{"role": "assistant", "content": "b"}])];
    let other = json!([{"role": "assistant", "content": "c"}]);
    let messages = json!([ask[0], reply[0]]);
    for row in [
        json!({"messages": messages, "system": "S"}),
        json!({"prompt": ask, "completion": reply, "system": "S"}),
        json!({"prompt": "a", "chosen": reply, "rejected": other, "system": "S"}),
    ] {
        let task = task(&[row.clone(), row]);
        assert_eq!(task.rows(Split::All, None).unwrap()[0].prompt, "system: S\nuser: a\n");
        assert!(task.warnings.iter().all(|warning| !warning.contains("system")), "{:?}", task.warnings);
    }
    let row = json!({"prompt": "a", "chosen": "b", "rejected": "c", "system": "S"});
    let warnings = task(&[row.clone(), row]).warnings;
    assert!(warnings[0].contains("no preference") && warnings[1].contains("column `system` is not used"));
}

#[test]
fn the_prompt_is_what_stands_before_the_last_reply() {
    let tokenizer = tokenizer(Some(CHATML));
    let task = task(&[two_turns(), two_turns()]);
    let row = task.rows(Split::All, None).unwrap()[0];
    let prompt = Example::prompt_text(row, &tokenizer).unwrap();
    assert!(prompt.ends_with("<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"), "{prompt}");
    let tokens = Example::encode_row_prompt(row, &tokenizer, 999).unwrap();
    assert_eq!(Example::encode(row, &tokenizer, 999).unwrap().prompt(), tokens);
    assert_eq!(row.accepted(), ["d"]);
}

#[test]
fn replies_that_change_once_more_follows_carry_no_loss() {
    let thought = messages(&[
        ("user", "a"),
        ("assistant", "<think>x</think>b"),
        ("user", "c"),
        ("assistant", "<think>y</think>d"),
    ]);
    let row = json!({ "messages": thought });
    let plain = tokenizer(Some(THINKING));
    let example = encode(row.clone(), &plain, 999).unwrap();
    assert_eq!(example.reply_source, ReplySource::LastReply);
    let shown = marked(&example, &plain);
    assert!(
        shown.contains("assistant\nb<|im_end|>\n") && shown.ends_with("[<think>y</think>d<|im_end|>]\n"),
        "{shown}"
    );
    // Marked by the template, every reply does.
    let marks = tokenizer(Some(&thinking_with_blocks()));
    let example = encode(row, &marks, 999).unwrap();
    assert_eq!(example.reply_source, ReplySource::GenerationBlocks);
    let shown = marked(&example, &marks);
    assert!(
        shown.contains("assistant\n[b<|im_end|>]\n") && shown.ends_with("[<think>y</think>d<|im_end|>]\n"),
        "{shown}"
    );
}

/// [`THINKING`], with `{% generation %}` around each reply.
fn thinking_with_blocks() -> String {
    let content = "{{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}";
    let blocks = "{{- '<|im_start|>' ~ message.role ~ '\\n' }}{% if message.role == 'assistant' %}{% generation %}\
                  {{ content ~ '<|im_end|>' }}{% endgeneration %}{% else %}{{ content ~ '<|im_end|>' }}{% endif %}{{ '\\n' }}";
    assert!(THINKING.contains(content));
    THINKING.replace(content, blocks)
}

#[test]
fn blocks_of_replies_that_are_given_or_have_no_weight_carry_no_loss() {
    let blocks = thinking_with_blocks();
    let of_turn =
        |reply: &str| [("user", "u"), ("assistant", reply)].map(|(role, text)| json!({"role": role, "content": text}));
    let [given, first, last] = ["<think>x</think>GIVEN", "<think>x</think>b", "<think>y</think>d"].map(of_turn);
    let (prompt, completion) = ([&given[..], &first[..1]].concat(), [&first[1..], &last].concat());
    let row = json!({"prompt": prompt, "completion": completion});
    let shown = |template: &str, row: &Value| {
        let tokenizer = tokenizer(Some(template));
        let example = encode(row.clone(), &tokenizer, 999).unwrap();
        (example.reply_source, marked(&example, &tokenizer))
    };
    let (source, text) = shown(&blocks, &row);
    assert_eq!(source, ReplySource::GenerationBlocks);
    assert!(text.contains("assistant\nGIVEN<|im_end|>") && text.contains("[b<|im_end|>]"), "{text}");
    assert!(text.ends_with("[<think>y</think>d<|im_end|>]\n"), "{text}");
    let mut unlearned = given.clone();
    unlearned[1]["weight"] = json!(0);
    let messages = [&unlearned[..], &first, &last].concat();
    let (source, weighted) = shown(&blocks, &json!({ "messages": messages }));
    assert_eq!((source, weighted), (ReplySource::GenerationBlocks, text.clone()));
    // Two blocks of one reply: whose they are is not known.
    let doubled = blocks.replace("{{ content ~", "{% endgeneration %}{% generation %}{{ content ~");
    let (source, text) = shown(&doubled, &row);
    assert_eq!(source, ReplySource::LastReply);
    assert!(text.contains("\nb<|im_end|>") && text.ends_with("[<think>y</think>d<|im_end|>]\n"), "{text}");
}

#[test]
fn tokens_after_the_last_one_with_loss_leave_no_turn_out() {
    let encoded = |row: &Value, loss, max_length| {
        let tokenizer = with_loss(CHATML, loss);
        let example = encode(row.clone(), &tokenizer, max_length).unwrap();
        (example.truncation.messages, example.len(), marked(&example, &tokenizer))
    };
    let mut unanswered = two_turns();
    unanswered["messages"].as_array_mut().unwrap().push(json!({"role": "user", "content": "what else?"}));
    let (_, whole, shown) = encoded(&two_turns(), LossTokens::Assistant, 999);
    assert!(shown.ends_with("[d<|im_end|>]\n"), "the last token is a newline");
    for row in [two_turns(), unanswered] {
        for loss in [LossTokens::Assistant, LossTokens::Last] {
            let (dropped, length, shown) = encoded(&row, loss, whole - 1);
            assert_eq!((dropped, length), (0, whole - 1), "{shown}");
            assert!(shown.ends_with("[d<|im_end|>]"), "{shown}");
            assert_eq!(encoded(&row, loss, whole - 2).0, 2, "the end of the last reply does not fit");
        }
        assert_eq!(encoded(&row, LossTokens::All, whole - 1).0, 2, "the newline is learned too");
    }
}

#[test]
fn the_oldest_turns_of_a_long_conversation_are_left_out() {
    let tokenizer = tokenizer(Some(CHATML));
    let all = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")];
    let row = json!({"messages": messages(&all)});
    let whole = encode(row.clone(), &tokenizer, 999).unwrap();
    // Nothing reads the newline at the end.
    let example = encode(row.clone(), &tokenizer, whole.len() - 2).unwrap();
    assert_eq!((example.truncation.messages, example.truncation.prompt), (2, 0));
    let turn = "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[d<|im_end|>]\n";
    assert_eq!(marked(&example, &tokenizer), format!("<|im_start|>system\ns<|im_end|>\n{turn}"));
    // The last turn alone is cut as a plain row is.
    let example = encode(row, &tokenizer, 10).unwrap();
    assert_eq!((example.len(), example.truncation.messages), (10, 2));
    assert!(example.truncation.prompt > 0 && marked(&example, &tokenizer).ends_with("[d<|im_end|>]"));
}

#[test]
fn as_few_turns_are_left_out_as_fit() {
    let tokenizer = tokenizer(Some(CHATML));
    let turns = (0..40).flat_map(|turn| [("user", format!("{turn:0>3}")), ("assistant", "b".repeat(1 + turn % 7))]);
    let turns: Vec<Value> = turns.map(|(role, content)| json!({"role": role, "content": content})).collect();
    // The length of each number of turns, as it is without a limit.
    let lengths: Vec<usize> = (0..40)
        .map(|dropped| encode(json!({"messages": &turns[2 * dropped..]}), &tokenizer, 9999).unwrap().len())
        .collect();
    let row = json!({ "messages": turns });
    for limit in (20..lengths[0] + 2).step_by(9) {
        // The last token, a newline, is not read.
        let expected = lengths.iter().position(|length| length - 1 <= limit).unwrap_or(39);
        let example = encode(row.clone(), &tokenizer, limit).unwrap();
        assert_eq!(example.truncation.messages, 2 * expected, "{limit}");
    }
}

#[test]
fn only_the_completion_of_a_prompt_is_learned() {
    let tokenizer = tokenizer(Some(CHATML));
    let prompt = messages(&[("user", "a"), ("assistant", "b"), ("user", "c")]);
    let row = json!({"prompt": prompt, "completion": messages(&[("assistant", "d")])});
    let shown = marked(&encode(row, &tokenizer, 999).unwrap(), &tokenizer);
    assert!(shown.contains("\nb<|im_end|>") && shown.ends_with("[d<|im_end|>]\n"), "{shown}");
}

#[test]
fn plain_rows_texts_and_bos() {
    let row = json!({"prompt": "a ", "completion": "b"});
    let shown = |encoding, row: Value| {
        let tokenizer = tokenizer(Some(CHATML)).with_encoding(encoding);
        marked(&encode(row, &tokenizer, 999).unwrap(), &tokenizer)
    };
    let (default, never) = (RowEncoding::default(), RowEncoding { bos: BosTokens::Never, ..RowEncoding::default() });
    assert_eq!(shown(default, row.clone()), "<s>a [b</s>]");
    assert_eq!(shown(never, row.clone()), "a [b</s>]");
    assert_eq!(shown(RowEncoding { loss: LossTokens::All, ..default }, row), "<s>[a b</s>]");
    let chat = RowEncoding { chat: true, ..default };
    let alpaca = json!({"instruction": "i", "input": "a", "output": "b"});
    let turns =
        "<|im_start|>system\ni<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[b<|im_end|>]\n";
    assert_eq!(shown(chat, alpaca.clone()), turns);
    let gemma = tokenizer(Some(GEMMA)).with_encoding(chat);
    let without_system = marked(&encode(alpaca, &gemma, 999).unwrap(), &gemma);
    assert_eq!(without_system, "<s><start_of_turn>user\ni\na<end_of_turn>\n<start_of_turn>model\n[b<end_of_turn>]\n");
    let texts = task(&[json!({"text": "ab"}), json!({"text": "c</s>"})]);
    let rows = texts.rows(Split::All, None).unwrap();
    let plain = tokenizer(None);
    let text = |row: usize| marked(&Example::encode(rows[row], &plain, 999).unwrap(), &plain);
    assert_eq!((text(0), text(1)), ("<s>[ab</s>]".to_owned(), "<s>[c</s>]".to_owned()));
}

#[test]
fn a_base_without_a_template_and_a_refused_conversation_are_errors() {
    let error = |row, template| {
        let error = encode(row, &tokenizer(template), 999).unwrap_err();
        format!("{:#}", anyhow::Error::from(error))
    };
    assert!(error(two_turns(), None).contains("row 1: chat template: the base has none"));
    assert!(error(two_turns(), Some("{% if %}")).contains("chat_template.jinja: chat template: syntax error"));
    let system = json!({"messages": messages(&[("system", "s"), ("user", "a"), ("assistant", "b")])});
    let refused = error(system, Some(GEMMA));
    assert!(refused.ends_with("the chat template refuses the conversation: System role not supported"), "{refused}");
}
