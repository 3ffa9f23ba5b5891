//! A model's chat template: renders a conversation as text of the kind that the model was trained on.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use lorakit_format::hash::sha256;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, Value};
use serde_json::{Map, Value as Json, json};

use crate::chat::conversation::{ASSISTANT, Conversation, Message, SYSTEM, USER};
use crate::chat::generation_block::{take_marks, with_marks};
use crate::error::{Result, TaskError};
use crate::jinja::environment::environment;

/// The name of the template for conversations without tools, or for all.
const DEFAULT: &str = "default";
/// The name of a template of its own for conversations with tools.
const TOOL_USE: &str = "tool_use";

/// A text that no template writes by itself.
pub(crate) const PROBE: &str = "lorakit-probe";

/// A model's chat template, compiled: one for all conversations, or a separate one for those with tools. It renders as
/// `apply_chat_template` of transformers does.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    /// The special tokens by the names that templates use, such as `bos_token`.
    special_tokens: Map<String, Json>,
    /// Whether templates see `bos_token`, or an empty text.
    writes_bos: bool,
    /// The SHA-256 of the text of the template for conversations without tools, if there is one.
    default: Option<String>,
    /// The SHA-256 of the text of the template for conversations with tools, if there is one.
    tool_use: Option<String>,
    has_system_role: bool,
    takes_parts: bool,
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedChat {
    /// The text. It has its special tokens, BOS among them: it is tokenized without adding any.
    pub text: String,
    /// The byte ranges of the template's `{% generation %}` blocks; empty if it has none.
    pub generated: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are the variables that hold a model's special tokens, such as `bos_token`.
    ///
    /// # Errors
    /// If the template has a syntax error.
    pub fn new(source: &str, special_tokens: Map<String, Json>) -> Result<ChatTemplate> {
        ChatTemplate::of_names(&BTreeMap::from([(DEFAULT.to_owned(), source.to_owned())]), special_tokens)
    }

    /// Compiles a model's templates by name: `default`, and `tool_use` for conversations with tools. Others are not used.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`], or if there is neither of the two.
    pub(crate) fn of_names(
        templates: &BTreeMap<String, String>,
        special_tokens: Map<String, Json>,
    ) -> Result<ChatTemplate> {
        let mut environment = environment();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.unwrap_or_default());
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        let mut add = |name: &'static str| -> Result<Option<String>> {
            let Some(source) = templates.get(name) else { return Ok(None) };
            add(&mut environment, name, source)?;
            Ok(Some(sha256(source.as_bytes())))
        };
        let (default, tool_use) = (add(DEFAULT)?, add(TOOL_USE)?);
        if default.is_none() && tool_use.is_none() {
            let names: Vec<&str> = templates.keys().map(String::as_str).collect();
            return Err(TaskError::ChatTemplate(format!(
                "expected a template named `{DEFAULT}`, found {}",
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            )));
        }
        let mut template = ChatTemplate {
            environment: Arc::new(environment),
            special_tokens,
            writes_bos: true,
            default,
            tool_use,
            has_system_role: false,
            takes_parts: true,
        };
        template.has_system_role = template.renders_system_messages();
        template.takes_parts = template.renders_parts();
        Ok(template)
    }

    /// The template with the model's `bos_token`, or with an empty one.
    pub(crate) fn with_bos(mut self, writes_bos: bool) -> ChatTemplate {
        self.writes_bos = writes_bos;
        self
    }

    /// What decides the text of a conversation besides the template and the choice of BOS.
    pub(crate) fn context(&self) -> Json {
        json!({ "special_tokens": self.special_tokens, "tool_use": self.tool_use })
    }

    /// The SHA-256 of the template's text, in hexadecimal; of several, that of the one for conversations without tools.
    pub fn sha256(&self) -> &str {
        self.default.as_deref().or(self.tool_use.as_deref()).unwrap_or_default()
    }

    /// Whether the template takes a system message; some refuse it, or leave it out.
    pub fn has_system_role(&self) -> bool {
        self.has_system_role
    }

    /// Renders a conversation; with `add_generation_prompt` what comes before a reply is added at its end.
    ///
    /// # Errors
    /// If the template refuses the conversation, in the template's own words, or uses what minijinja lacks; or if it takes
    /// content as text alone, and a message has parts of reasoning.
    pub fn render(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<RenderedChat> {
        if !self.takes_parts && conversation.messages.iter().any(Message::has_thinking_parts) {
            return Err(TaskError::RefusedChat(
                "it takes the content of a message as text, without parts of `thinking`; give the reasoning as \
                 `reasoning_content` instead"
                    .to_owned(),
            ));
        }
        let messages: Vec<_> = conversation.messages.iter().map(|message| message.fields(self.takes_parts)).collect();
        let mut variables = self.special_tokens.clone();
        if !self.writes_bos {
            variables.insert("bos_token".into(), "".into());
        }
        variables.insert("messages".into(), json!(messages));
        variables.insert("tools".into(), json!(conversation.tools));
        variables.insert("documents".into(), Json::Null);
        variables.insert("add_generation_prompt".into(), add_generation_prompt.into());
        let rendered = self.environment.get_template(self.name_for(conversation)?);
        let rendered = rendered.and_then(|template| template.render(Value::from(Serde(&variables))));
        // A message of `raise_exception` is the error's detail.
        let (text, generated) = take_marks(&rendered.map_err(|error| {
            TaskError::RefusedChat(error.detail().map_or_else(|| error.to_string(), str::to_owned))
        })?);
        Ok(RenderedChat { text, generated })
    }

    /// The name of the template that renders a conversation.
    fn name_for(&self, conversation: &Conversation) -> Result<&'static str> {
        match (&self.default, &self.tool_use, &conversation.tools) {
            (_, Some(_), Some(_)) => Ok(TOOL_USE),
            (Some(_), _, _) => Ok(DEFAULT),
            (None, ..) => Err(TaskError::ChatTemplate(format!(
                "the base has one for conversations with tools, `{TOOL_USE}`, but none for others, `{DEFAULT}`"
            ))),
        }
    }

    /// A conversation that shows what a template does, one with a list of no tools where the template is for tools alone.
    fn probe(&self, messages: Vec<Message>) -> Result<RenderedChat> {
        let tools = self.default.is_none().then(|| json!([]));
        self.render(&Conversation { tools, ..Conversation::new(messages) }, false)
    }

    fn renders_system_messages(&self) -> bool {
        let messages = [(SYSTEM, PROBE), (USER, "a"), (ASSISTANT, "b")];
        let messages = messages.map(|(role, content)| Message::new(role, content));
        let rendered = self.probe(messages.to_vec());
        rendered.is_ok_and(|chat| chat.text.contains(PROBE))
    }

    /// Whether the template takes content in parts. Most take text alone, and refuse a list or write it with its brackets.
    fn renders_parts(&self) -> bool {
        let messages = [
            json!({"role": USER, "content": [{"type": "text", "text": PROBE}]}),
            json!({"role": ASSISTANT, "content": "b"}),
        ];
        let messages = messages.iter().map(Message::read).collect::<Result<_>>();
        let rendered = messages.and_then(|messages| self.probe(messages));
        let is_list = |text: &str| ["'type'", "\"type\""].iter().any(|key| text.contains(key));
        rendered.is_ok_and(|chat| chat.text.contains(PROBE) && !is_list(&chat.text))
    }
}

fn add(environment: &mut Environment<'static>, name: &'static str, source: &str) -> Result<()> {
    // As Jinja reads a template's lines.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let text = with_marks(&source).unwrap_or(source);
    environment.add_template_owned(name, text).map_err(|error| TaskError::ChatTemplate(error.to_string()))
}
