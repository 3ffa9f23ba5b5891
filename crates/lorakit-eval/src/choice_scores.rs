//! Multiple choice: the likelihood of each choice of a question, and which one each of three published metrics selects.

use crate::error::{EvalError, Result};
use crate::patched_model::PatchedModel;
use crate::shared_prefix::{Branch, PrefixTree, nll};
use crate::token_batches::run_token_batches;
use lorakit_lora::Sequence;
use lorakit_task::{ChoiceRequest, Example, Metric, choice_requests};
use serde::Serialize;
use std::ops::Range;

/// The likelihood of one choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChoiceScore {
    /// The choice.
    pub text: String,
    /// `sum log p` of its tokens after the prompt, without EOS, as in lm-evaluation-harness.
    pub log_likelihood: f64,
    /// Unicode code points of the choice, without the separator between prompt and choice.
    pub characters: usize,
    /// The mean negative log-likelihood per token of the choice as an answer in training, EOS included.
    pub loss: f64,
}

/// The choice that `metric` selects; the first one on ties. None for a metric that does not compare choices.
///
/// `acc` selects the highest log-likelihood and `acc_norm` the highest per character (lm-evaluation-harness);
/// `acc_tok` selects the lowest loss per token (arXiv:2405.11157).
pub fn chosen(metric: Metric, choices: &[ChoiceScore]) -> Option<usize> {
    let score_of = |choice: &ChoiceScore| match metric {
        Metric::Acc => Some(choice.log_likelihood),
        Metric::AccNorm => Some(choice.log_likelihood / choice.characters as f64),
        Metric::AccTok => Some(-choice.loss),
        Metric::Loss | Metric::ExactMatch | Metric::ExactMatchNormalized | Metric::RougeL => None,
    };
    let scores: Vec<f64> = choices.iter().map(score_of).collect::<Option<_>>()?;
    scores.iter().enumerate().reduce(|best, other| if other.1 > best.1 { other } else { best }).map(|(i, _)| i)
}

/// Scores every choice of every row, in order.
///
/// The choices of a question share its prompt, which is processed once. Questions share forwards of at most `batch_tokens`
/// tokens. Neither changes a score by more than rounding. `done` receives the number of finished rows.
///
/// # Errors
/// If a row has no choices or cannot be tokenized, or a likelihood is not finite.
pub fn score_choices(
    model: &PatchedModel,
    rows: &[&lorakit_task::Row],
    batch_tokens: usize,
    done: &mut (dyn FnMut(usize) + Send),
) -> Result<Vec<Vec<ChoiceScore>>> {
    score_questions(model, rows, &questions(model, rows)?, batch_tokens, done)
}

/// The choices of every row, tokenized.
pub(crate) fn questions<'a>(model: &PatchedModel, rows: &[&'a lorakit_task::Row]) -> Result<Vec<Question<'a>>> {
    rows.iter().map(|row| Question::new(row, model)).collect()
}

/// As [`score_choices`], for the rows' `questions`.
pub(crate) fn score_questions(
    model: &PatchedModel,
    rows: &[&lorakit_task::Row],
    questions: &[Question],
    batch_tokens: usize,
    done: &mut (dyn FnMut(usize) + Send),
) -> Result<Vec<Vec<ChoiceScore>>> {
    let lengths: Vec<usize> = questions.iter().map(Question::tokens).collect();
    let score = |batch: &[usize]| batch_scores(model, rows, questions, batch);
    run_token_batches(&model.base.batch_parallel(batch_tokens), &lengths, score, done)
}

/// The scores of the questions of one batch.
fn batch_scores(
    model: &PatchedModel,
    rows: &[&lorakit_task::Row],
    questions: &[Question],
    batch: &[usize],
) -> Result<Vec<Vec<ChoiceScore>>> {
    let prompts: Vec<&[u32]> = batch.iter().map(|&index| questions[index].prompt.as_slice()).collect();
    let routed = batch.iter().zip(model.route(&prompts)?);
    let trees: Vec<(&PrefixTree, Sequence)> =
        routed.flat_map(|(&index, row)| questions[index].trees.iter().map(move |tree| (tree, row.clone()))).collect();
    let mut nll = nll(model, &trees)?.into_iter();
    let of_question = |&index: &usize| {
        let branches: Vec<Vec<f64>> = nll.by_ref().take(questions[index].trees.len()).flatten().collect();
        let choices = questions[index].choices.iter().map(|choice| choice.score(&branches));
        choices
            .collect::<Result<_>>()
            .map_err(|source| EvalError::Row { row: rows[index].number, source: Box::new(source) })
    };
    batch.iter().map(of_question).collect()
}

/// The choices of a row as branches.
pub(crate) struct Question<'a> {
    /// The choices as answers in training.
    pub examples: Vec<Example>,
    /// The common prompt.
    prompt: Vec<u32>,
    choices: Vec<Choice<'a>>,
    trees: Vec<PrefixTree>,
}

/// Where a choice's scores come from.
struct Choice<'a> {
    text: &'a str,
    characters: usize,
    /// The tokens whose log-likelihoods are summed.
    request: Span,
    /// The tokens whose loss is averaged, EOS last.
    target: Span,
}

/// Predicted tokens of one of a question's branches.
struct Span {
    branch: usize,
    tokens: Range<usize>,
}

impl Span {
    /// The `len` tokens from `start` on of a branch.
    fn new(branches: &[Branch], branch: usize, start: usize, len: usize) -> Span {
        let start = start - branches[branch].from;
        Span { branch, tokens: start..start + len }
    }

    fn of<'n>(&self, nll: &'n [Vec<f64>]) -> &'n [f64] {
        &nll[self.branch][self.tokens.clone()]
    }
}

impl<'a> Question<'a> {
    fn new(row: &'a lorakit_task::Row, model: &PatchedModel) -> Result<Question<'a>> {
        let (tokenizer, length) = (model.tokenizer, model.max_length());
        let (texts, _) = row.choices().ok_or(EvalError::NoChoices { row: row.number })?;
        let requests = choice_requests(row, tokenizer, length)?;
        let examples = Example::encode_choices(row, tokenizer, length)?;
        if let Some(empty) = requests.iter().position(|request| request.continuation.is_empty()) {
            return Err(EvalError::EmptyChoice { row: row.number, choice: texts[empty].clone() });
        }
        let branches = branches(&requests, &examples);
        let first_example = branches.len() - examples.len();
        let choice = |i: usize| Choice {
            text: &texts[i],
            characters: requests[i].characters,
            request: Span::new(&branches, i, requests[i].context.len(), requests[i].continuation.len()),
            target: Span::new(&branches, first_example + i, examples[i].prompt_len, examples[i].target().len()),
        };
        let choices = (0..texts.len()).map(choice).collect();
        // Requests share a prompt, and examples share one; a request whose prompt was truncated shares nothing with an
        // example.
        let alike = branches.chunks(texts.len());
        let trees = alike.flat_map(|alike| PrefixTree::of_rows(alike.to_vec(), tokenizer.layout())).collect();
        let prompt = examples.first().map_or_else(Vec::new, |example| example.prompt().to_vec());
        Ok(Question { examples, prompt, choices, trees })
    }

    fn tokens(&self) -> usize {
        self.trees.iter().map(PrefixTree::tokens).sum()
    }
}

impl Choice<'_> {
    /// The scores from the negative log-likelihoods of the question's branches.
    fn score(&self, nll: &[Vec<f64>]) -> Result<ChoiceScore> {
        let log_likelihood = -self.request.of(nll).iter().sum::<f64>();
        let target = self.target.of(nll);
        let loss = target.iter().sum::<f64>() / target.len() as f64;
        if !(log_likelihood.is_finite() && loss.is_finite()) {
            return Err(EvalError::NonFiniteChoice { choice: self.text.to_owned(), log_likelihood, loss });
        }
        Ok(ChoiceScore { text: self.text.to_string(), log_likelihood, characters: self.characters, loss })
    }
}

/// One branch per choice if every example continues as its request does, which is usual; else one per request and then one
/// per example: a prompt that is too long, or a token across the border, is truncated differently in the two.
fn branches(requests: &[ChoiceRequest], examples: &[Example]) -> Vec<Branch> {
    let both = || requests.iter().zip(examples);
    if let Some(joint) = both().map(|(request, example)| joint(request, example)).collect() {
        return joint;
    }
    let requested = requests.iter().map(|request| Branch::new(&request.context, &request.continuation));
    let trained = examples.iter().map(|example| Branch::new(example.prompt(), example.target()));
    requested.chain(trained).collect()
}

/// The example as a branch that also covers its request.
fn joint(request: &ChoiceRequest, example: &Example) -> Option<Branch> {
    let mut branch = Branch::new(example.prompt(), example.target());
    let rest = branch.tokens.strip_prefix(request.context.as_slice())?;
    if !rest.starts_with(&request.continuation) {
        return None;
    }
    branch.from = branch.from.min(request.context.len());
    Some(branch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(log_likelihood: f64, characters: usize, loss: f64) -> ChoiceScore {
        ChoiceScore { text: String::new(), log_likelihood, characters, loss }
    }

    #[test]
    fn three_metrics_select_three_choices() {
        let choices = [choice(-4.0, 2, 1.5), choice(-6.0, 12, 1.2), choice(-9.0, 10, 1.0)];
        assert_eq!(chosen(Metric::Acc, &choices), Some(0));
        assert_eq!(chosen(Metric::AccNorm, &choices), Some(1));
        assert_eq!(chosen(Metric::AccTok, &choices), Some(2));
        assert_eq!(chosen(Metric::Loss, &choices), None);
    }

    #[test]
    fn the_first_of_equal_choices_is_selected() {
        let choices = [choice(-5.0, 5, 1.0), choice(-4.0, 4, 0.5), choice(-4.0, 4, 0.5)];
        assert_eq!(chosen(Metric::Acc, &choices), Some(1));
        assert_eq!(chosen(Metric::AccNorm, &choices), Some(0));
        assert_eq!(chosen(Metric::AccTok, &choices), Some(1));
    }

    #[test]
    fn one_branch_covers_request_and_example_if_their_tokens_agree() {
        let request = |context: &[u32], continuation: &[u32]| ChoiceRequest {
            context: context.to_vec(),
            continuation: continuation.to_vec(),
            characters: 1,
            bytes: 1,
        };
        let example = Example::new(&[1, 5, 6], &[7, 8, 2]);
        let together = branches(&[request(&[1, 5], &[6, 7, 8])], std::slice::from_ref(&example));
        assert_eq!(together, [Branch { tokens: vec![1, 5, 6, 7, 8, 2], from: 2 }]);
        let apart = branches(&[request(&[5], &[6, 7, 8])], &[example]);
        assert_eq!(apart, [Branch::new(&[5], &[6, 7, 8]), Branch::new(&[1, 5, 6], &[7, 8, 2])]);
    }
}
