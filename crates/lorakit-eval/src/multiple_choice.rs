//! Multiple choice: how likely each choice of a question is, and which one three published rules would take.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use lorakit_task::{ChoiceRequest, Example, Metric, choice_requests};
use serde::Serialize;

use crate::patched_model::PatchedModel;
use crate::shared_prefix::{Branch, PrefixTree, nll};
use crate::token_batches::token_batches;
use lorakit_lora::Sequence;

/// How likely one choice is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChoiceScore {
    /// The choice.
    pub text: String,
    /// `sum log p` of its tokens as the choice stands after the prompt, without EOS, as lm-evaluation-harness asks.
    pub log_likelihood: f64,
    /// Unicode code points of the choice, without what stands between it and the prompt.
    pub characters: usize,
    /// The mean negative log-likelihood per token, EOS included, of the choice as a trained answer.
    pub loss: f64,
}

/// The choice that `metric` takes; of equals the first. None for a metric that does not compare choices.
///
/// `acc` takes the highest log-likelihood and `acc_norm` the highest per character (lm-evaluation-harness);
/// `acc_tok` takes the lowest loss per token (arXiv:2405.11157).
pub fn chosen(metric: Metric, choices: &[ChoiceScore]) -> Option<usize> {
    let merit = |choice: &ChoiceScore| match metric {
        Metric::Acc => Some(choice.log_likelihood),
        Metric::AccNorm => Some(choice.log_likelihood / choice.characters as f64),
        Metric::AccTok => Some(-choice.loss),
        Metric::Loss | Metric::ExactMatch | Metric::RougeL => None,
    };
    let merits: Vec<f64> = choices.iter().map(merit).collect::<Option<_>>()?;
    merits.iter().enumerate().reduce(|best, other| if other.1 > best.1 { other } else { best }).map(|(i, _)| i)
}

/// Scores every choice of every row, in their order.
///
/// The choices of a question share its prompt, which is read once. Questions are read together in forwards of at most
/// `batch_tokens` tokens; neither the sharing nor the company changes a score by more than rounding. `done` hears
/// how many rows are finished.
///
/// # Errors
/// Where a row has no choices or cannot be tokenised, or a likelihood is not finite.
pub fn score_choices(
    model: &PatchedModel,
    rows: &[&lorakit_task::Row],
    batch_tokens: usize,
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<ChoiceScore>>> {
    let questions: Vec<Question> = rows.iter().map(|row| Question::new(row, model)).collect::<Result<_>>()?;
    let lengths: Vec<usize> = questions.iter().map(Question::tokens).collect();
    let mut scores = vec![Vec::new(); rows.len()];
    let mut finished = 0;
    let lanes = model.base.batch_parallel(batch_tokens);
    let of_group =
        |group: &Vec<usize>| -> Result<_> { Ok((group.clone(), group_scores(model, rows, &questions, group)?)) };
    lanes.run(&token_batches(&lengths, lanes.tokens()), of_group, |(group, found)| {
        finished += group.len();
        group.into_iter().zip(found).for_each(|(index, found)| scores[index] = found);
        done(finished);
        Ok(())
    })?;
    Ok(scores)
}

/// The scores of the questions that are read together.
fn group_scores(
    model: &PatchedModel,
    rows: &[&lorakit_task::Row],
    questions: &[Question],
    group: &[usize],
) -> Result<Vec<Vec<ChoiceScore>>> {
    let prompts: Vec<&[u32]> = group.iter().map(|&index| questions[index].prompt.as_slice()).collect();
    let rows_of = group.iter().zip(model.routing(&prompts)?);
    let fans: Vec<(&PrefixTree, Sequence)> =
        rows_of.flat_map(|(&index, row)| questions[index].fans.iter().map(move |fan| (fan, row.clone()))).collect();
    let mut nll = nll(model, &fans)?.into_iter();
    let of_question = |&index: &usize| {
        let paths: Vec<Vec<f64>> = nll.by_ref().take(questions[index].fans.len()).flatten().collect();
        let choices = questions[index].choices.iter().map(|choice| choice.score(&paths));
        choices.collect::<Result<_>>().with_context(|| format!("row {}", rows[index].number))
    };
    group.iter().map(of_question).collect()
}

/// The choices of a row as paths to be read.
struct Question<'a> {
    /// What stands before all choices.
    prompt: Vec<u32>,
    choices: Vec<Choice<'a>>,
    fans: Vec<PrefixTree>,
}

/// Where a choice's scores come from.
struct Choice<'a> {
    text: &'a str,
    characters: usize,
    /// The tokens whose log-likelihoods are summed.
    asked: Span,
    /// The tokens whose loss is averaged, EOS last.
    target: Span,
}

/// Predicted tokens of one of a question's paths.
struct Span {
    path: usize,
    tokens: Range<usize>,
}

impl Span {
    /// The `len` tokens from `start` on of a path.
    fn new(paths: &[Branch], path: usize, start: usize, len: usize) -> Span {
        let start = start - paths[path].from;
        Span { path, tokens: start..start + len }
    }

    fn of<'n>(&self, nll: &'n [Vec<f64>]) -> &'n [f64] {
        &nll[self.path][self.tokens.clone()]
    }
}

impl<'a> Question<'a> {
    fn new(row: &'a lorakit_task::Row, model: &PatchedModel) -> Result<Question<'a>> {
        let (vocabulary, length) = (model.vocabulary, model.max_length());
        let (texts, _) = row.choices().with_context(|| format!("row {} has no choices", row.number))?;
        let requests = choice_requests(row, vocabulary, length)?;
        let examples = Example::encode_choices(row, vocabulary, length)?;
        if let Some(empty) = requests.iter().position(|request| request.continuation.is_empty()) {
            bail!("row {}: the choice `{}` has no token of its own", row.number, texts[empty]);
        }
        let paths = paths(&requests, &examples);
        let first_example = paths.len() - examples.len();
        let choice = |i: usize| Choice {
            text: &texts[i],
            characters: requests[i].characters,
            asked: Span::new(&paths, i, requests[i].context.len(), requests[i].continuation.len()),
            target: Span::new(&paths, first_example + i, examples[i].prompt.len(), examples[i].target.len()),
        };
        let choices = (0..texts.len()).map(choice).collect();
        // Requests among themselves share their prompt, and so do examples; a request whose prompt was cut shares
        // nothing with an example.
        let fans = paths.chunks(texts.len()).map(|alike| PrefixTree::new(alike.to_vec())).collect();
        let prompt = examples.first().map_or_else(Vec::new, |example| example.prompt.clone());
        Ok(Question { prompt, choices, fans })
    }

    fn tokens(&self) -> usize {
        self.fans.iter().map(PrefixTree::tokens).sum()
    }
}

impl Choice<'_> {
    /// The scores from the negative log-likelihoods of the question's paths.
    fn score(&self, nll: &[Vec<f64>]) -> Result<ChoiceScore> {
        let log_likelihood = -self.asked.of(nll).iter().sum::<f64>();
        let target = self.target.of(nll);
        let loss = target.iter().sum::<f64>() / target.len() as f64;
        ensure!(
            log_likelihood.is_finite() && loss.is_finite(),
            "the log-likelihood of the choice `{}` is {log_likelihood}, its loss {loss}; are all weights finite?",
            self.text
        );
        Ok(ChoiceScore { text: self.text.to_string(), log_likelihood, characters: self.characters, loss })
    }
}

/// One path per choice where every example goes on as its request does, which is the rule; else a path per request,
/// then one per example: a prompt that is too long, or a token across the border, is cut differently in the two.
fn paths(requests: &[ChoiceRequest], examples: &[Example]) -> Vec<Branch> {
    let both = || requests.iter().zip(examples);
    if let Some(joint) = both().map(|(request, example)| joint(request, example)).collect() {
        return joint;
    }
    let asked = requests.iter().map(|request| Branch::new(&request.context, &request.continuation));
    let trained = examples.iter().map(|example| Branch::new(&example.prompt, &example.target));
    asked.chain(trained).collect()
}

/// The example as a path that serves its request too.
fn joint(request: &ChoiceRequest, example: &Example) -> Option<Branch> {
    let mut path = Branch::new(&example.prompt, &example.target);
    let rest = path.tokens.strip_prefix(request.context.as_slice())?;
    if !rest.starts_with(&request.continuation) {
        return None;
    }
    path.from = path.from.min(request.context.len());
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(log_likelihood: f64, characters: usize, loss: f64) -> ChoiceScore {
        ChoiceScore { text: String::new(), log_likelihood, characters, loss }
    }

    #[test]
    fn three_rules_take_three_choices() {
        let choices = [choice(-4.0, 2, 1.5), choice(-6.0, 12, 1.2), choice(-9.0, 10, 1.0)];
        assert_eq!(chosen(Metric::Acc, &choices), Some(0));
        assert_eq!(chosen(Metric::AccNorm, &choices), Some(1));
        assert_eq!(chosen(Metric::AccTok, &choices), Some(2));
        assert_eq!(chosen(Metric::Loss, &choices), None);
    }

    #[test]
    fn of_equal_choices_the_first_is_taken() {
        let choices = [choice(-5.0, 5, 1.0), choice(-4.0, 4, 0.5), choice(-4.0, 4, 0.5)];
        assert_eq!(chosen(Metric::Acc, &choices), Some(1));
        assert_eq!(chosen(Metric::AccNorm, &choices), Some(0));
        assert_eq!(chosen(Metric::AccTok, &choices), Some(1));
    }

    #[test]
    fn a_path_serves_request_and_example_where_they_read_alike() {
        let request = |context: &[u32], continuation: &[u32]| ChoiceRequest {
            context: context.to_vec(),
            continuation: continuation.to_vec(),
            characters: 1,
            bytes: 1,
        };
        let example = Example { prompt: vec![1, 5, 6], target: vec![7, 8, 2], truncation: Default::default() };
        let together = paths(&[request(&[1, 5], &[6, 7, 8])], std::slice::from_ref(&example));
        assert_eq!(together, [Branch { tokens: vec![1, 5, 6, 7, 8, 2], from: 2 }]);
        let apart = paths(&[request(&[5], &[6, 7, 8])], &[example]);
        assert_eq!(apart, [Branch::new(&[5], &[6, 7, 8]), Branch::new(&[1, 5, 6], &[7, 8, 2])]);
    }
}
