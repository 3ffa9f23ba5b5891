//! Chat templates against transformers 5.23: small templates of our own, and the oracle's of known models.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use lorakit_task::{ChatTemplate, Conversation, Message, TaskError};
use serde_json::{Map, Value, json};

const CHATML: &str = include_str!("fixtures/chat_templates/chatml.jinja");
const LLAMA_3: &str = include_str!("fixtures/chat_templates/llama_3.jinja");
const MISTRAL: &str = include_str!("fixtures/chat_templates/mistral.jinja");
const GEMMA: &str = include_str!("fixtures/chat_templates/gemma.jinja");
const THINKING: &str = include_str!("fixtures/chat_templates/thinking.jinja");

fn template(source: &str) -> ChatTemplate {
    let tokens = json!({"bos_token": "<s>", "eos_token": "</s>"});
    ChatTemplate::new(source, tokens.as_object().unwrap().clone()).unwrap()
}

fn conversation(messages: &[(&str, &str)]) -> Conversation {
    Conversation::new(messages.iter().map(|(role, content)| Message::new(role, content)).collect())
}

/// A conversation with a system message and two turns, rendered with the generation prompt.
fn rendered(source: &str) -> Result<String, TaskError> {
    let messages = [("system", "Be brief."), ("user", " 2? "), ("assistant", "two\n"), ("user", "3?")];
    Ok(template(source).render(&conversation(&messages), true)?.text)
}

// The expected texts are those of transformers.
#[test]
fn templates_of_each_kind_render_as_in_transformers() {
    for (source, expected) in [
        (
            CHATML,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n 2? <|im_end|>\n<|im_start|>assistant\ntwo\n<|im_end|>\n\
             <|im_start|>user\n3?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            LLAMA_3,
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n\
             2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\ntwo<|eot_id|><|start_header_id|>user<|end_header_id|>\
             \n\n3?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (MISTRAL, "<s>[INST] Be brief.\n\n2? [/INST] two</s>[INST] 3? [/INST]"),
        (
            THINKING,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n 2? <|im_end|>\n<|im_start|>assistant\ntwo\n<|im_end|>\n\
             <|im_start|>user\n3?<|im_end|>\n<|im_start|>assistant\n",
        ),
    ] {
        assert_eq!(rendered(source).unwrap(), expected);
    }
    let error = rendered(GEMMA).unwrap_err();
    assert!(matches!(&error, TaskError::RefusedChat(why) if why == "System role not supported"), "{error}");
    let text = template(GEMMA).render(&conversation(&[("user", "2?"), ("assistant", " two ")]), false).unwrap().text;
    assert_eq!(text, "<s><start_of_turn>user\n2?<end_of_turn>\n<start_of_turn>model\ntwo<end_of_turn>\n");
    let systems = [CHATML, LLAMA_3, MISTRAL, GEMMA].map(|source| template(source).has_system_role());
    assert_eq!(systems, [true, true, true, false]);
}

#[test]
fn thoughts_are_cut_and_tools_are_json() {
    let read = template(THINKING);
    let messages = [("user", "2?"), ("assistant", "<think>\neasy\n</think>\n\ntwo"), ("user", "3?")];
    let text = read.render(&conversation(&messages), false).unwrap().text;
    assert_eq!(
        text,
        "<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n<|im_start|>user\n3?<|im_end|>\n"
    );
    let tools = json!([{"type": "function", "function": {"name": "größe", "parameters": {"b": 1, "a": [true, null]}}}]);
    let with_tools = Conversation { tools: Some(tools), ..conversation(&[("user", "2?")]) };
    let text = read.render(&with_tools, false).unwrap().text;
    let json = r#"{"type": "function", "function": {"name": "größe", "parameters": {"b": 1, "a": [true, null]}}}"#;
    assert!(text.starts_with(&format!("<|im_start|>system\n<tools>\n{json}\n</tools><|im_end|>\n")), "{text}");
}

#[test]
fn parts_of_text_are_joined_for_templates_that_take_text_alone() {
    let parts = json!({"role": "user", "content": [{"type": "text", "text": "2"}, {"type": "text", "text": "?"}]});
    let conversation = Conversation::new(vec![Message::read(&parts).unwrap(), Message::new("assistant", "two")]);
    let text = |source| template(source).render(&conversation, false).unwrap().text;
    assert_eq!(text(CHATML), "<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n");
    // One that would write the list, and one that takes it.
    assert_eq!(text("{% for m in messages %}{{ m.content }};{% endfor %}"), "2?;two;");
    let each = "{% for m in messages %}{% if m.content is string %}{{ m.content }};{% else %}\
                {% for part in m.content %}<{{ part.text }}>{% endfor %}{% endif %}{% endfor %}";
    assert_eq!(text(each), "<2><?>two;");
}

#[test]
fn generation_blocks_are_found_and_leave_no_trace() {
    let source = "{% for m in messages %}\n{{ m.role }}:\n  {%- if m.role == 'assistant' %}\n    {%- generation %}\n {{ m.content }}.\
                  {% endgeneration %}\n{% else %}\n {{ m.content }}\n{% endif %}\n{% endfor %}";
    let chat = template(source).render(&conversation(&[("user", "é"), ("assistant", "two")]), false).unwrap();
    // As transformers renders it; the block as its assistant mask has it.
    assert_eq!(chat.text, "user: é\nassistant: two.");
    let blocks: Vec<&str> = chat.generated.iter().map(|block| &chat.text[block.clone()]).collect();
    assert_eq!(blocks, [" two."]);
}

#[test]
#[ignore = "needs ../shared"]
fn every_conversation_of_the_oracle_renders_alike() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let oracle = std::fs::read_to_string(shared.join("oracles/chat_oracle.json")).unwrap();
    let oracle: Value = serde_json::from_str(&oracle).unwrap();
    let tokens: Map<String, Value> =
        ["bos_token", "eos_token"].into_iter().map(|name| (name.to_owned(), oracle[name].clone())).collect();
    let mut compared = 0;
    for (name, cases) in oracle["templates"].as_object().unwrap() {
        let source = std::fs::read_to_string(shared.join("data/chat_templates").join(name)).unwrap();
        let template = ChatTemplate::new(&source, tokens.clone()).unwrap();
        for (case, expected) in cases.as_object().unwrap() {
            let (messages, form) = case.split_once('/').unwrap();
            let messages = oracle["conversations"][messages].as_array().unwrap().iter();
            let text = |message: &Value, key: &str| message[key].as_str().unwrap().to_owned();
            let messages = messages.map(|message| Message::new(&text(message, "role"), &text(message, "content")));
            let found = match template.render(&Conversation::new(messages.collect()), form == "prompt") {
                Ok(chat) => json!({ "text": chat.text }),
                Err(TaskError::RefusedChat(why)) => json!({ "error": why }),
                Err(other) => panic!("{name} {case}: {other}"),
            };
            assert_eq!(&found, expected, "{name} {case}");
            compared += 1;
        }
    }
    assert!(compared >= 19 * 14, "{compared}");
}
