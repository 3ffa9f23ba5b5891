//! A tokenized row, for training and scoring.

use crate::chat::conversation::Conversation;
use crate::chat::reply_span::ReplySource;
use crate::error::{At, Result, TaskError};
use crate::row::{Row, RowKind};
use crate::tokenization::conversation_tokens::{self, ConversationTokens, conversation_of};
use crate::tokenization::row_encoding::LossTokens;
use crate::tokenization::row_layout::RowLayout;
use crate::tokenization::tokenizer::Tokenizer;

/// A tokenized row, and which of its tokens contribute to the loss: of a prompt and its answer only the answer's, of a
/// conversation usually every reply's.
///
/// For an encoder-decoder the tokens are the source, which the encoder reads, the token that the decoder starts with, and the
/// target: each target token is predicted by the one before it, as in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The tokens, at least two.
    pub tokens: Vec<u32>,
    /// Whether each token contributes to the loss; the first does not, since nothing predicts it.
    pub loss: Vec<bool>,
    /// The number of tokens before the answer, or before the last reply of a conversation; at least one.
    pub prompt_len: usize,
    /// The tokens that were cut off.
    pub truncation: Truncation,
    /// How the replies of a conversation were found.
    pub reply_source: ReplySource,
    /// Whether what is learned ends with a token at which generation stops, but for truncation. A chat template may end
    /// replies with another, or with none.
    pub has_stop_token: bool,
    /// Whether the chat template leaves out what replies of text call besides.
    pub drops_calls: bool,
}

/// How much of a row did not fit in the maximum length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truncation {
    /// Messages of a conversation that were left out, the oldest turns first.
    pub messages: usize,
    /// Cut from the left of the prompt, after BOS.
    pub prompt: usize,
    /// Cut from the right of the target, EOS among them; zero unless the target alone is too long.
    pub target: usize,
}

/// A token of an [`Example`], for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenView {
    /// The token's id.
    pub id: u32,
    /// The token as the tokenizer spells it, such as `Ġthe` or `▁the`.
    pub token: String,
    /// Whether the token contributes to the loss.
    pub loss: bool,
}

impl Example {
    /// A prompt, and the target after it, whose tokens all contribute to the loss.
    pub fn new(prompt: &[u32], target: &[u32]) -> Example {
        let tokens = [prompt, target].concat();
        let loss = (0..tokens.len()).map(|i| i >= prompt.len().max(1)).collect();
        let (truncation, reply_source) = (Truncation::default(), ReplySource::default());
        let prompt_len = prompt.len();
        Example { tokens, loss, prompt_len, truncation, reply_source, has_stop_token: true, drops_calls: false }
    }

    /// The tokens before the answer, or before the last reply of a conversation: what decides how a row is routed, and what
    /// generation starts from.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len]
    }

    /// The answer with EOS, or the last reply of a conversation with what follows it.
    pub fn target(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// The number of tokens that contribute to the loss.
    pub fn loss_tokens(&self) -> usize {
        self.loss.iter().filter(|&&loss| loss).count()
    }

    /// Whether all tokens of the target contribute to the loss, and no others.
    pub fn has_plain_loss(&self) -> bool {
        self.loss.iter().enumerate().all(|(i, &loss)| loss == (i >= self.prompt_len))
    }

    /// Tokenizes a row with its training target.
    ///
    /// The prompt begins with BOS if the tokenizer's post-processor adds it. An empty prompt without BOS becomes one BOS
    /// (or EOS if the tokenizer has no BOS), since the first target token must be predicted from something.
    ///
    /// If prompt and target are longer than `max_length` tokens, the prompt is cut from the left, keeping BOS and at
    /// least one token. A target that is still too long is cut from the right. [`Example::truncation`] counts both.
    ///
    /// A conversation is rendered by the chat template and tokenized without adding special tokens; its prompt is all
    /// before the last reply. If it is too long, the oldest turns are left out first, but no system message. A text is its
    /// tokens and EOS, cut from the right.
    ///
    /// For an encoder-decoder, prompt and answer are encoded apart, without the delimiter between them; the prompt is what the
    /// tokenizer makes of a whole text, for T5 with EOS at its end. It has no conversations and no texts without a prompt.
    ///
    /// # Errors
    /// If the tokenizer fails, `max_length` leaves no room, or the base has no chat template for a conversation or refuses it.
    pub fn encode(row: &Row, tokenizer: &Tokenizer, max_length: usize) -> Result<Example> {
        let encode = || match conversation_of(row, row.target(), tokenizer)? {
            Some(conversation) => Example::of_conversation(&conversation, tokenizer, max_length),
            None if tokenizer.layout() != RowLayout::Stream => {
                Example::encode_source_target(row, tokenizer, max_length)
            }
            None if row.kind == RowKind::Text => Example::of_text(row.target(), tokenizer, max_length),
            None => {
                let mut example = Example::encode_answer(row, row.target(), tokenizer, max_length)?;
                if tokenizer.encoding().loss == LossTokens::All {
                    example.loss[1..].fill(true);
                }
                Ok(example)
            }
        };
        encode().at(|| format!("row {}", row.number))
    }

    /// As [`Example::encode`], one example for each choice of the row, which `acc_tok` compares: the loss is on the choice
    /// alone, whatever [`LossTokens`] says. Empty if the row has no choices.
    ///
    /// # Errors
    /// As [`Example::encode`].
    pub fn encode_choices(row: &Row, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<Example>> {
        let texts = row.choices().map_or(&[][..], |(texts, _)| texts);
        let encode = |text: &String| match conversation_of(row, text, tokenizer)? {
            Some(conversation) => {
                let encoded = ConversationTokens::encode(&conversation, tokenizer, max_length)?;
                let (prompt, reply) = (&encoded.tokens[..encoded.reply.start], &encoded.tokens[encoded.reply.clone()]);
                Example::fit(prompt.to_vec(), reply.to_vec(), tokenizer, max_length)
            }
            None => Example::encode_answer(row, text, tokenizer, max_length),
        };
        let examples: Result<_> = texts.iter().map(encode).collect();
        examples.at(|| format!("row {}", row.number))
    }

    /// A row of an encoder-decoder.
    fn encode_source_target(row: &Row, tokenizer: &Tokenizer, max_length: usize) -> Result<Example> {
        if row.kind == RowKind::Text {
            return Err(TaskError::Row(
                "it is a text without a prompt, and the base is an encoder-decoder, which needs both; use rows of prompt and \
                 answer"
                    .to_owned(),
            ));
        }
        if tokenizer.encoding().loss == LossTokens::All {
            return Err(TaskError::Row(
                "the base is an encoder-decoder, which predicts the answer alone: leave out loss=all".to_owned(),
            ));
        }
        Example::encode_answer(row, row.target(), tokenizer, max_length)
    }

    fn encode_answer(row: &Row, answer: &str, tokenizer: &Tokenizer, max_length: usize) -> Result<Example> {
        let prompt = prompt_tokens(&row.prompt, tokenizer)?;
        let mut target = match tokenizer.layout() {
            RowLayout::Stream => {
                let delimiter = row.delimiter_before(answer);
                tokenizer.encode_after(&row.prompt, &prompt, &format!("{delimiter}{answer}"))?
            }
            RowLayout::SourceTarget { .. } => tokenizer.encode_without_special(answer)?,
        };
        // An answer may spell EOS itself.
        if target.last() != Some(&tokenizer.eos()) {
            target.push(tokenizer.eos());
        }
        Example::fit(prompt, target, tokenizer, max_length)
    }

    fn of_conversation(conversation: &Conversation, tokenizer: &Tokenizer, max_length: usize) -> Result<Example> {
        ensure_room(max_length, tokenizer.layout())?;
        let encoded = ConversationTokens::encode(conversation, tokenizer, max_length)?;
        let has_stop_token =
            encoded.tokens[encoded.reply.clone()].last().is_some_and(|last| tokenizer.stop_tokens().contains(last));
        let ConversationTokens { mut tokens, mut loss, reply, reply_source, dropped_messages, drops_calls } = encoded;
        // Nothing after the last token with loss is ever read.
        let end = loss.iter().rposition(|&loss| loss).map_or(tokens.len(), |last| last + 1);
        let kept = if tokens.len() > max_length { end.min(reply.start + max_length - 1) } else { tokens.len() };
        let target = end.saturating_sub(kept);
        tokens.truncate(kept);
        loss.truncate(kept);
        let prompt = tokens.len().saturating_sub(max_length).min(reply.start.saturating_sub(1));
        // Models that were trained with BOS do badly without it.
        let from = usize::from(tokens.first().is_some_and(|first| Some(*first) == tokenizer.bos()));
        tokens.drain(from..from + prompt);
        loss.drain(from..from + prompt);
        loss.iter_mut().take(1).for_each(|first| *first = false);
        let truncation = Truncation { messages: dropped_messages, prompt, target };
        let prompt_len = (reply.start - prompt).max(1);
        Ok(Example { tokens, loss, prompt_len, truncation, reply_source, has_stop_token, drops_calls })
    }

    fn of_text(text: &str, tokenizer: &Tokenizer, max_length: usize) -> Result<Example> {
        ensure_room(max_length, tokenizer.layout())?;
        let mut tokens = tokenizer.encode(text)?;
        if tokens.last() != Some(&tokenizer.eos()) {
            tokens.push(tokenizer.eos());
        }
        let whole = tokens.len();
        tokens.truncate(max_length);
        let truncation = Truncation { target: whole - tokens.len(), ..Truncation::default() };
        let prompt = tokenizer.prefix().len().max(1).min(tokens.len());
        Ok(Example { truncation, ..Example::new(&tokens[..prompt], &tokens[prompt..]) })
    }

    /// Tokenizes the prompt of a row, for generation: what the model reads before the answer or the last reply.
    ///
    /// # Errors
    /// As [`Example::encode`], and if `max_length` is 0.
    pub fn encode_row_prompt(row: &Row, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<u32>> {
        let encode = || match conversation_of(row, row.target(), tokenizer)? {
            Some(conversation) => {
                let (_, tokens) = conversation_tokens::encode_prompt(&conversation, tokenizer, max_length)?;
                Example::fit_prompt(tokens, tokenizer, max_length)
            }
            None => Example::encode_prompt(&row.prompt, tokenizer, max_length),
        };
        encode().at(|| format!("row {}", row.number))
    }

    /// The text of the prompt of a row: as it is, or what the chat template makes of it.
    ///
    /// # Errors
    /// As [`Example::encode`].
    pub fn prompt_text(row: &Row, tokenizer: &Tokenizer) -> Result<String> {
        let render = || match conversation_of(row, row.target(), tokenizer)? {
            Some(conversation) => Ok(conversation_tokens::encode_prompt(&conversation, tokenizer, usize::MAX)?.0),
            None => Ok(row.prompt.clone()),
        };
        render().at(|| format!("row {}", row.number))
    }

    /// Tokenizes a conversation for the reply that follows it, by the chat template: cut from the left to `max_length` tokens.
    ///
    /// # Errors
    /// If the base has no chat template, or it refuses the conversation.
    pub fn encode_chat_prompt(
        conversation: &Conversation,
        tokenizer: &Tokenizer,
        max_length: usize,
    ) -> Result<Vec<u32>> {
        let text = tokenizer.chat_template()?.render(conversation, true)?.text;
        Example::fit_prompt(tokenizer.encode_without_special(&text)?, tokenizer, max_length)
    }

    /// Tokenizes a prompt alone, for generation, as [`Example::encode`] does: cut from the left to `max_length` tokens,
    /// keeping BOS.
    ///
    /// # Errors
    /// If the tokenizer fails, or `max_length` leaves nothing of the prompt but special tokens.
    pub fn encode_prompt(prompt: &str, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<u32>> {
        Example::fit_prompt(prompt_tokens(prompt, tokenizer)?, tokenizer, max_length)
    }

    fn fit_prompt(tokens: Vec<u32>, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<u32>> {
        let mut prompt = not_empty(tokens, tokenizer);
        let least = match tokenizer.layout() {
            RowLayout::Stream => tokenizer.prefix().len(),
            RowLayout::SourceTarget { .. } => tokenizer.bare_prompt_len()?,
        };
        if prompt.len() > max_length && max_length <= least {
            return Err(TaskError::Length(format!(
                "nothing of a prompt of {} tokens would be left, since there is room for {max_length}",
                prompt.len()
            )));
        }
        cut_left(&mut prompt, tokenizer.prefix(), max_length);
        Ok(prompt)
    }

    fn fit(prompt: Vec<u32>, mut target: Vec<u32>, tokenizer: &Tokenizer, max_length: usize) -> Result<Example> {
        let layout = tokenizer.layout();
        ensure_room(max_length, layout)?;
        let mut prompt = not_empty(prompt, tokenizer);
        let whole = (prompt.len(), target.len());
        target.truncate(max_length - layout.least_prompt());
        cut_left(&mut prompt, tokenizer.prefix(), max_length - target.len());
        let truncation = Truncation { messages: 0, prompt: whole.0 - prompt.len(), target: whole.1 - target.len() };
        Ok(Example { truncation, ..Example::new(&prompt, &target) })
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Always false: an example has a prompt and a target.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The tokens in order, for display.
    pub fn token_views(&self, tokenizer: &Tokenizer) -> Vec<TokenView> {
        let view = |(&id, &loss)| TokenView { id, token: tokenizer.token(id).unwrap_or_default(), loss };
        self.tokens.iter().zip(&self.loss).map(view).collect()
    }
}

/// Refuses a length that has no room for a prompt and a target.
fn ensure_room(max_length: usize, layout: RowLayout) -> Result<()> {
    let least = layout.least_prompt() + 1;
    if max_length >= least {
        return Ok(());
    }
    Err(TaskError::Length(format!(
        "the maximum length is {max_length}; expected room for a prompt and a target, at least {least}"
    )))
}

/// The tokens of a text that an answer follows.
pub(crate) fn prompt_tokens(text: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    match tokenizer.layout() {
        RowLayout::Stream => tokenizer.encode(text),
        RowLayout::SourceTarget { start } => {
            let source = not_empty(tokenizer.encode_whole(text)?, tokenizer);
            Ok([source.as_slice(), &[start]].concat())
        }
    }
}

/// The prompt, or if it is empty the one token that stands for it.
pub(crate) fn not_empty(mut prompt: Vec<u32>, tokenizer: &Tokenizer) -> Vec<u32> {
    if prompt.is_empty() {
        prompt.push(tokenizer.bos().unwrap_or(tokenizer.eos()));
    }
    prompt
}

/// Keeps the last `room` tokens, or fewer of them and the prefix: models that were trained with BOS do badly without it.
fn cut_left(prompt: &mut Vec<u32>, prefix: &[u32], room: usize) {
    if prompt.len() <= room {
        return;
    }
    let kept = if prompt.starts_with(prefix) { prefix.len().min(room) } else { 0 };
    let cut = prompt.len() - room;
    prompt.drain(kept..kept + cut);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::row::Answer;
    use crate::tokenization::tokenizer::tests::{spell, tiny};

    fn row(prompt: &str, answer: &str) -> Row {
        Row::plain(1, serde_json::Map::new(), prompt, "", Answer::Text(vec![answer.into()]))
    }

    fn encode(prompt: &str, answer: &str, max_length: usize) -> (String, String, Truncation) {
        let tiny = tiny();
        let example = Example::encode(&row(prompt, answer), &tiny, max_length).unwrap();
        assert!(example.len() <= max_length);
        (spell(&tiny, example.prompt()), spell(&tiny, example.target()), example.truncation)
    }

    #[test]
    fn the_target_ends_with_eos() {
        let (prompt, target, cut) = encode("ab\n", "cat", 100);
        assert_eq!((prompt.as_str(), target.as_str()), ("<s> ▁ a b <0x0A>", "cat </s>"));
        assert_eq!(cut, Truncation::default());
        assert_eq!(encode("a", "cat</s>", 100).1, "cat </s>", "an answer that ends with EOS gets no second one");
    }

    #[test]
    fn a_long_prompt_is_cut_from_the_left_and_keeps_bos() {
        let (prompt, target, cut) = encode("ab\n", "cat", 5);
        assert_eq!((prompt.as_str(), target.as_str()), ("<s> b <0x0A>", "cat </s>"));
        assert_eq!(cut, Truncation { prompt: 2, ..Truncation::default() });
        assert_eq!(encode("ab\n", "cat", 3).0, "<s>");
    }

    #[test]
    fn a_target_too_long_by_itself_is_cut_from_the_right() {
        let (prompt, target, cut) = encode("ab\n", "xyz", 3);
        assert_eq!((prompt.as_str(), target.as_str()), ("<s>", "x y"));
        assert_eq!(cut, Truncation { prompt: 4, target: 2, messages: 0 });
        assert!(Example::encode(&row("a", "b"), &tiny(), 1).is_err());
    }

    #[test]
    fn an_empty_prompt_is_bos() {
        assert_eq!(encode("", "a", 10).0, "<s>");
    }

    #[test]
    fn token_views_say_which_tokens_contribute_to_the_loss() {
        let tiny = tiny();
        let example = Example::encode(&row("a\n", "cat"), &tiny, 10).unwrap();
        let token_views = example.token_views(&tiny);
        let loss: Vec<_> = token_views.iter().filter(|piece| piece.loss).collect();
        assert_eq!((loss[0].token.as_str(), loss[1].token.as_str()), ("cat", "</s>"));
        assert_eq!((token_views.len(), loss.len()), (6, 2));
    }

    #[test]
    fn a_prompt_for_generation_is_cut_as_for_training() {
        let tiny = tiny();
        let prompt = Example::encode_prompt("ab\n", &tiny, 3).unwrap();
        assert_eq!(spell(&tiny, &prompt), "<s> b <0x0A>");
        let error = Example::encode_prompt("ab\n", &tiny, 1).unwrap_err().to_string();
        assert!(error.contains("nothing of a prompt of 5 tokens would be left"), "{error}");
        assert_eq!(Example::encode_prompt("", &tiny, 1).unwrap(), [1]);
    }
}
