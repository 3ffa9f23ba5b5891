//! Records which experts a router chose for each token at each site.

use lorakit_lora::Site;
use lorakit_route::{LibraryStack, Observer, RoutingDecision};
use lorakit_task::Tokenizer;
use serde::Serialize;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// The name of weight that no expert has.
pub const UNASSIGNED: &str = "unassigned: the base, or the fallback of `evidence`";

/// Collects every choice that a router makes over one prompt.
#[derive(Default)]
pub struct TraceObserver(Mutex<Vec<TracedChoice>>);

/// The choice at a site, or at some of its projections.
pub struct TracedChoice {
    /// Index of the site.
    pub site: usize,
    /// The projections of the site that the choice is for.
    pub projections: Range<usize>,
    /// The tokens of the prompt that the site reads: all, or of an encoder-decoder those of one of its stacks.
    pub read: Range<usize>,
    /// For each token of the prompt its experts, highest weight first; none for those that the site does not read.
    pub tokens: Vec<Vec<ExpertWeight>>,
}

/// An expert with its routing weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertWeight {
    /// Its index.
    pub expert: usize,
    /// Its weight.
    pub weight: f64,
}

impl Observer for TraceObserver {
    fn observe(&self, routing: &RoutingDecision) {
        let chosen =
            routing.experts.chunks_exact(routing.per_token).zip(routing.weights.chunks_exact(routing.per_token));
        let tokens = chosen.map(|(experts, weights)| {
            let share =
                |(expert, weight): (&u32, &f32)| ExpertWeight { expert: *expert as usize, weight: f64::from(*weight) };
            sorted(experts.iter().zip(weights).filter(|(_, weight)| **weight != 0.0).map(share).collect())
        });
        let tokens: Vec<_> = tokens.collect();
        let (projections, read) = (routing.projections.clone(), 0..tokens.len());
        let choice = TracedChoice { site: routing.site, projections, read, tokens };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(choice);
    }
}

/// Highest weight first; among equal ones, by name.
fn sorted(mut shares: Vec<ExpertWeight>) -> Vec<ExpertWeight> {
    shares.sort_by(|a, b| b.weight.total_cmp(&a.weight).then(a.expert.cmp(&b.expert)));
    shares
}

impl TraceObserver {
    /// Takes the recorded choices over a prompt of `prompt` tokens, of which an encoder reads the first `source`, in the
    /// order of sites and projections.
    pub fn take(&self, prompt: usize, source: usize) -> Vec<TracedChoice> {
        let mut choices = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        choices.sort_by_key(|choice| (choice.site, choice.projections.start));
        choices.into_iter().map(|choice| choice.placed(prompt, source)).collect()
    }
}

impl TracedChoice {
    /// The choice with a place for every token of the prompt: what has as many tokens as the source is about those, what has
    /// others is about the last ones.
    fn placed(self, prompt: usize, source: usize) -> Self {
        let found = self.tokens.len();
        let first = if found == source { 0 } else { prompt.saturating_sub(found) };
        let mut tokens = vec![Vec::new(); first];
        tokens.extend(self.tokens);
        tokens.resize(prompt.max(first + found), Vec::new());
        Self { read: first..first + found, tokens, ..self }
    }
}

/// A token of the prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracedToken {
    /// Its id.
    pub id: u32,
    /// As the vocabulary spells it, such as `Ġthe`.
    pub spelling: String,
    /// Its text, such as ` the`; of a token without text, such as BOS, the spelling, and of one that is a part of a
    /// character [`PART`] until the last of these tokens.
    pub text: String,
}

/// The text of a token that is a part of a character which a later one completes.
const PART: &str = "…";

/// Tokens that one character may span.
const CHARACTER_TOKENS: usize = 4;

impl TracedToken {
    /// The tokens of a prompt.
    pub fn of_prompt(ids: &[u32], tokenizer: &Tokenizer) -> lorakit_task::Result<Vec<Self>> {
        let mut start = 0usize;
        let mut tokens = Vec::with_capacity(ids.len());
        for (at, &id) in ids.iter().enumerate() {
            let spelling = tokenizer.token(id).unwrap_or_default();
            // A SentencePiece decoder drops the space at the start of its input, so a token is decoded after another.
            let context = start.saturating_sub(1);
            let (before, all) = (tokenizer.decode(&ids[context..start])?, tokenizer.decode(&ids[context..=at])?);
            let is_part = all.ends_with(char::REPLACEMENT_CHARACTER) && at - start + 1 < CHARACTER_TOKENS;
            let text = match all.get(before.len()..) {
                _ if is_part => PART.to_owned(),
                None | Some("") => text_after_itself(id, tokenizer)?.unwrap_or_else(|| spelling.clone()),
                Some(text) => text.to_owned(),
            };
            if !is_part {
                start = at + 1;
            }
            tokens.push(Self { id, spelling, text });
        }
        Ok(tokens)
    }
}

/// What a token adds to its own text, if anything: a space alone is dropped at the start of a SentencePiece decoder's input.
fn text_after_itself(id: u32, tokenizer: &Tokenizer) -> lorakit_task::Result<Option<String>> {
    let (once, twice) = (tokenizer.decode(&[id])?, tokenizer.decode(&[id, id])?);
    Ok(twice.get(once.len()..).filter(|text| !text.is_empty()).map(str::to_owned))
}

/// All choices over one prompt.
pub struct RoutingTrace<'a> {
    /// The router as typed.
    pub router: String,
    /// The prompt.
    pub prompt: String,
    /// The prompt's tokens.
    pub tokens: Vec<TracedToken>,
    /// The experts of the library.
    pub experts: &'a LibraryStack,
    /// Every choice, site by site.
    pub choices: Vec<TracedChoice>,
}

/// The JSON document of a [`RoutingTrace`].
#[derive(Serialize)]
pub struct TraceDocument<'a> {
    router: &'a str,
    prompt: &'a str,
    experts: Vec<NamedShare<'a>>,
    tokens: Vec<TokenDocument<'a>>,
    choices: Vec<ChoiceDocument<'a>>,
}

#[derive(Serialize)]
struct NamedShare<'a> {
    expert: &'a str,
    weight: f64,
}

#[derive(Serialize)]
struct TokenDocument<'a> {
    id: u32,
    token: &'a str,
    text: &'a str,
    experts: Vec<NamedShare<'a>>,
}

#[derive(Serialize)]
struct ChoiceDocument<'a> {
    site: String,
    layer: Option<usize>,
    modules: Vec<&'a str>,
    tokens: Vec<Vec<NamedShare<'a>>>,
}

impl RoutingTrace<'_> {
    /// The name of an expert.
    pub fn name(&self, expert: usize) -> &str {
        &self.experts.names()[expert]
    }

    /// Where a choice was made: `3.qkv`, or `3.qkv q_proj` for some projections of the site.
    pub fn place(&self, choice: &TracedChoice) -> String {
        let site: &Site = &self.experts.sites()[choice.site];
        let names: Vec<&str> = site.projections[choice.projections.clone()].iter().map(|p| p.name()).collect();
        if names.len() == site.projections.len() { site.key() } else { format!("{} {}", site.key(), names.join(",")) }
    }

    /// The layer of a choice; none at a site outside the layers.
    pub fn layer(&self, choice: &TracedChoice) -> Option<usize> {
        self.experts.sites()[choice.site].layer
    }

    /// For each token every expert's weight averaged over those of `choices` that read it, without experts of weight zero.
    pub fn averaged<'c>(&self, choices: impl Iterator<Item = &'c TracedChoice>) -> Vec<Vec<ExpertWeight>> {
        let mut sums = vec![vec![0.0; self.experts.len()]; self.tokens.len()];
        let mut counts = vec![0.0; self.tokens.len()];
        for choice in choices {
            counts[choice.read.clone()].iter_mut().for_each(|count| *count += 1.0);
            for (sums, shares) in sums.iter_mut().zip(&choice.tokens) {
                shares.iter().for_each(|share| sums[share.expert] += share.weight);
            }
        }
        let shares = |(sums, count): (Vec<f64>, f64)| {
            let weight = |(expert, sum): (usize, f64)| ExpertWeight { expert, weight: sum / count };
            sorted(sums.into_iter().enumerate().filter(|(_, sum)| *sum != 0.0).map(weight).collect())
        };
        sums.into_iter().zip(counts).map(shares).collect()
    }

    /// Every expert's weight averaged over all choices and tokens.
    pub fn overall(&self) -> Vec<ExpertWeight> {
        let mut sums = vec![0.0; self.experts.len()];
        for share in self.averaged(self.choices.iter()).into_iter().flatten() {
            sums[share.expert] += share.weight / self.tokens.len() as f64;
        }
        let weight = |(expert, weight)| ExpertWeight { expert, weight };
        sorted(sums.into_iter().enumerate().filter(|(_, sum)| *sum != 0.0).map(weight).collect())
    }

    /// Everything, for `--json`.
    pub fn document(&self) -> TraceDocument<'_> {
        let named = |shares: &[ExpertWeight]| -> Vec<NamedShare> {
            shares.iter().map(|share| NamedShare { expert: self.name(share.expert), weight: share.weight }).collect()
        };
        let tokens = self.tokens.iter().zip(self.averaged(self.choices.iter()));
        let choice = |choice: &TracedChoice| {
            let site = &self.experts.sites()[choice.site];
            let projections = &site.projections[choice.projections.clone()];
            ChoiceDocument {
                site: site.key(),
                layer: site.layer,
                modules: projections.iter().map(|projection| projection.module.as_str()).collect(),
                tokens: choice.tokens.iter().map(|shares| named(shares)).collect(),
            }
        };
        TraceDocument {
            router: &self.router,
            prompt: &self.prompt,
            experts: named(&self.overall()),
            tokens: tokens
                .map(|(token, shares)| TokenDocument {
                    id: token.id,
                    token: &token.spelling,
                    text: &token.text,
                    experts: named(&shares),
                })
                .collect(),
            choices: self.choices.iter().map(choice).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    /// A tokenizer whose tokens are bytes, spelled as GPT-2's are, after `<s>`.
    fn bytes() -> Tokenizer {
        let shown = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let hidden: Vec<u8> = (0..=255).filter(|byte| !shown(byte)).collect();
        let spelled = |byte: u8| match hidden.iter().position(|&other| other == byte) {
            Some(at) => char::from_u32(256 + at as u32).unwrap(),
            None => char::from(byte),
        };
        let vocabulary: serde_json::Map<_, _> =
            (0..=255).map(|byte| (spelled(byte).to_string(), u32::from(byte).into())).collect();
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let start = json!({"id": 256, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true});
        let document = json!({"version": "1.0", "added_tokens": [start], "pre_tokenizer": level, "decoder": level,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []}});
        Tokenizer::from_bytes(document.to_string().as_bytes(), "<s>").unwrap()
    }

    /// A tokenizer of SentencePiece's pieces, whose decoder drops the space at the start.
    fn pieces() -> Tokenizer {
        let vocabulary = json!({"</s>": 0, "\u{2581}": 1, "cat": 2, "\u{2581}cat": 3});
        let end = json!({"id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true});
        let metaspace =
            json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
        let document = json!({"version": "1.0", "added_tokens": [end], "pre_tokenizer": metaspace, "decoder": metaspace,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "</s>"}});
        Tokenizer::from_bytes(document.to_string().as_bytes(), "</s>").unwrap()
    }

    #[test]
    fn a_space_is_shown_as_one_wherever_it_is() {
        let tokens = TracedToken::of_prompt(&[1, 2, 1, 3, 0], &pieces()).unwrap();
        let texts: Vec<&str> = tokens.iter().map(|token| token.text.as_str()).collect();
        assert_eq!(texts, [" ", "cat", " ", " cat", "</s>"]);
        assert_eq!(tokens[0].spelling, "\u{2581}");
    }

    #[test]
    fn choices_of_a_stack_are_about_its_tokens() {
        let choice = |weights: &[f64]| TracedChoice {
            site: 0,
            projections: 0..1,
            read: 0..0,
            tokens: weights.iter().map(|&weight| vec![ExpertWeight { expert: 0, weight }]).collect(),
        };
        let placed = |weights: &[f64], prompt, source| {
            let TracedChoice { read, tokens, .. } = choice(weights).placed(prompt, source);
            (read, tokens.iter().map(|shares| shares.first().map_or(0.0, |share| share.weight)).collect::<Vec<_>>())
        };
        assert_eq!(placed(&[0.5, 0.6], 2, 0), (0..2, vec![0.5, 0.6]));
        assert_eq!(placed(&[0.5, 0.6], 3, 2), (0..2, vec![0.5, 0.6, 0.0]));
        assert_eq!(placed(&[0.7], 3, 2), (2..3, vec![0.0, 0.0, 0.7]));
    }

    #[test]
    fn tokens_are_shown_as_text() {
        let ids: Vec<u32> = [256].into_iter().chain("é 東\n".bytes().map(u32::from)).collect();
        let tokens = TracedToken::of_prompt(&ids, &bytes()).unwrap();
        let texts: Vec<&str> = tokens.iter().map(|token| token.text.as_str()).collect();
        assert_eq!(texts, ["<s>", "…", "é", " ", "…", "…", "東", "\n"]);
        assert_eq!((tokens[1].spelling.as_str(), tokens[7].spelling.as_str()), ("Ã", "Ċ"));
        // An invalid byte is text of its own.
        let broken = TracedToken::of_prompt(&[0xff, 0xff, 0xff, 0xff, 97], &bytes()).unwrap();
        assert_eq!(broken[4].text, "a");
    }
}
