//! The choice of the `top_k` experts with the highest scores, and their weights.

use crate::library_stack::LibraryStack;
use crate::observer::{Observer, RoutingDecision};
use candle_core::Tensor;
use candle_nn::ops::softmax_last_dim;
use lorakit_lora::{SequenceBatch, Site, TokenGroup, TokenSelection};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Below this number of tokens, distributing the selection over threads costs more than it saves.
pub(crate) const TOKENS_PER_TASK: usize = 32;

/// Up to this number of candidates, weighing all of them on a device costs less than a choice on the CPU.
const MAX_CHEAP_CANDIDATES: usize = 64;

/// The maximum number of scores of a token that candle sorts on a GPU.
const MAX_SORTED_SCORES: usize = 1024;

/// The choice among the candidates of one projection, or of a whole site.
#[derive(Clone, Debug)]
pub(crate) struct TopK {
    /// The candidates' columns among the scores of the site, ascending; several runs where a candidate was left out.
    pub(crate) columns: Vec<Range<usize>>,
    /// The experts that these columns score, in the order of their names.
    pub(crate) candidates: Vec<u32>,
    /// Added to an expert's index to make its slot.
    pub(crate) first_slot: usize,
    /// The projections that the choice holds for.
    pub(crate) projections: Range<usize>,
    /// Whether the sign of a score counts.
    pub(crate) sign: ScoreSign,
}

/// Whether the sign of a score counts when experts are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScoreSign {
    /// Its magnitude is compared: a singular vector has no sign of its own.
    Ignored,
    /// The score itself is compared: fitted vectors have a sign.
    Kept,
}

impl ScoreSign {
    fn apply(self, score: f32) -> f32 {
        match self {
            Self::Ignored => score.abs(),
            Self::Kept => score,
        }
    }
}

/// Columns that nothing is left out of, as the runs of [`TopK::columns`].
pub(crate) fn one_run(columns: Range<usize>) -> Vec<Range<usize>> {
    std::iter::once(columns).collect()
}

/// A choice for each group of projections that has candidates, whose scores are columns in this order. Slots are those of
/// the groups.
pub(crate) fn choices_in_order(
    groups: Vec<Range<usize>>,
    candidates: Vec<Vec<u32>>,
    experts: usize,
    sign: ScoreSign,
) -> Vec<TopK> {
    let mut start = 0;
    let choice = |(place, (projections, candidates)): (usize, (Range<usize>, Vec<u32>))| {
        let columns = one_run(start..start + candidates.len());
        start += candidates.len();
        TopK { columns, candidates, first_slot: place * experts, projections, sign }
    };
    let choices = groups.into_iter().zip(candidates).enumerate().map(choice);
    choices.filter(|choice| !choice.candidates.is_empty()).collect()
}

/// A choice by signed scores for each projection of a site, from one vector per expert, `[experts, in]`; with the vectors
/// of all choices, `[candidates of all choices, in]`. Projections that the same experts change share theirs.
/// An expert that does not change a projection is no candidate there.
pub(crate) fn signed_choices(vectors: &[f32], experts: &LibraryStack, site: &Site) -> (Vec<f32>, Vec<TopK>) {
    let (mut stacked, mut choices) = (Vec::new(), Vec::<TopK>::new());
    for (place, projection) in site.projections.iter().enumerate() {
        let changes = |expert: &u32| {
            experts.module(*expert as usize, &projection.module).is_some_and(|low_rank| low_rank.norm() > 0.0)
        };
        let candidates: Vec<u32> = (0..experts.len() as u32).filter(changes).collect();
        if candidates.is_empty() {
            continue;
        }
        let alike = choices.iter().find(|choice| choice.candidates == candidates).map(|choice| choice.columns.clone());
        let columns = alike.unwrap_or_else(|| {
            let start = stacked.len() / site.input;
            for expert in &candidates {
                stacked.extend_from_slice(&vectors[*expert as usize * site.input..][..site.input]);
            }
            one_run(start..start + candidates.len())
        });
        choices.push(TopK {
            columns,
            candidates,
            first_slot: place * experts.len(),
            projections: place..place + 1,
            sign: ScoreSign::Kept,
        });
    }
    (stacked, choices)
}

/// The chosen experts of every token.
pub(crate) struct Chosen {
    per_token: usize,
    /// Indices of experts, `[tokens, per_token]`.
    experts: Vec<u32>,
    /// Their weights, of the same shape.
    weights: Vec<f32>,
}

impl TopK {
    /// Takes for every token the `top_k` candidates of the highest scores, and a softmax over those alone.
    /// `scores` has `width` columns.
    pub(crate) fn choose(&self, scores: &[f32], width: usize, top_k: usize, temperature: f32) -> Chosen {
        let per_token = top_k.min(self.candidates.len());
        let tokens = scores.len() / width;
        let mut experts = vec![0; tokens * per_token];
        let mut weights = vec![0.0; tokens * per_token];
        experts
            .par_chunks_exact_mut(per_token)
            .zip(weights.par_chunks_exact_mut(per_token))
            .zip(scores.par_chunks_exact(width))
            .with_min_len(TOKENS_PER_TASK)
            .for_each(|((experts, weights), scores)| {
                let scores = &*self.own_scores(scores);
                if per_token == scores.len() {
                    experts.copy_from_slice(&self.candidates);
                    weights.iter_mut().zip(scores).for_each(|(weight, score)| *weight = self.sign.apply(*score));
                } else {
                    self.highest(scores, experts, weights);
                }
                softmax(weights, temperature);
            });
        Chosen { per_token, experts, weights }
    }

    /// Adds each token to the lists of the columns of those `top_k` candidates that score it highest; `scores` has a column
    /// for each list.
    pub(crate) fn shortlist(&self, scores: &[f32], top_k: usize, listed: &mut [Vec<u32>]) {
        let chosen = self.choose(scores, listed.len(), top_k, 1.0);
        let mut column_of = vec![0; self.candidates.last().map_or(0, |last| *last as usize + 1)];
        let columns = self.columns.iter().flat_map(Range::clone);
        self.candidates.iter().zip(columns).for_each(|(expert, column)| column_of[*expert as usize] = column);
        for (token, experts) in chosen.experts.chunks_exact(chosen.per_token).enumerate() {
            experts.iter().for_each(|expert| listed[column_of[*expert as usize]].push(token as u32));
        }
    }

    /// The scores of the candidates among those of the site.
    fn own_scores<'a>(&self, scores: &'a [f32]) -> Cow<'a, [f32]> {
        match self.columns.as_slice() {
            [run] => Cow::Borrowed(&scores[run.clone()]),
            runs => runs.iter().flat_map(|run| &scores[run.clone()]).copied().collect(),
        }
    }

    /// The same choice where one expert is no candidate; none if there is no other.
    pub(crate) fn without(&self, expert: u32) -> Option<Self> {
        let Some(at) = self.candidates.iter().position(|candidate| *candidate == expert) else {
            return Some(self.clone());
        };
        let column = self.columns.iter().flat_map(Range::clone).nth(at)?;
        let parts = |run: &Range<usize>| match run.contains(&column) {
            true => [run.start..column, column + 1..run.end],
            false => [run.clone(), 0..0],
        };
        let columns: Vec<_> = self.columns.iter().flat_map(parts).filter(|run| !run.is_empty()).collect();
        let candidates = self.candidates.iter().copied().filter(|candidate| *candidate != expert).collect();
        (!columns.is_empty()).then(|| Self { columns, candidates, ..self.clone() })
    }

    /// Whether a device should weigh all candidates for `tokens` tokens: they are few, or so many are chosen that most are
    /// computed anyway; and it can sort them.
    pub(crate) fn weighs_all(&self, tokens: usize, top_k: usize) -> bool {
        let candidates = self.candidates.len();
        candidates <= MAX_CHEAP_CANDIDATES
            || (tokens.saturating_mul(top_k) >= candidates && candidates <= MAX_SORTED_SCORES)
    }

    /// The same choice as [`TopK::choose`], made on the scores' device, `[tokens, width]`: the weight of each candidate,
    /// `[tokens, candidates]`, zero for those that are not chosen.
    pub(crate) fn weigh(&self, scores: &Tensor, top_k: usize, temperature: f32) -> candle_core::Result<Tensor> {
        let run = |columns: &Range<usize>| scores.narrow(1, columns.start, columns.len());
        let own = Tensor::cat(&self.columns.iter().map(run).collect::<candle_core::Result<Vec<_>>>()?, 1)?;
        let own = match self.sign {
            ScoreSign::Ignored => own.abs()?,
            ScoreSign::Kept => own,
        };
        let own = own.contiguous()?;
        let softmax = |scores: &Tensor| softmax_last_dim(&(scores / f64::from(temperature))?);
        if top_k >= self.candidates.len() {
            return softmax(&own);
        }
        let chosen = own.arg_sort_last_dim(false)?.narrow(1, 0, top_k)?.contiguous()?;
        own.zeros_like()?.scatter_add(&chosen, &softmax(&own.gather(&chosen, 1)?)?, 1)
    }

    /// The slots of the candidates.
    pub(crate) fn slots(&self) -> impl Iterator<Item = usize> {
        self.candidates.iter().map(|&expert| self.first_slot + expert as usize)
    }

    /// The groups that apply a choice: for each expert that any token chose, its tokens and their weights.
    pub(crate) fn groups<'a>(&'a self, chosen: &Chosen, experts: usize) -> impl Iterator<Item = TokenGroup> + use<'a> {
        let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); experts];
        let mut weights: Vec<Vec<f32>> = vec![Vec::new(); experts];
        let by_token = chosen.experts.chunks_exact(chosen.per_token).zip(chosen.weights.chunks_exact(chosen.per_token));
        for (token, (experts, of_token)) in by_token.enumerate() {
            for (expert, weight) in experts.iter().zip(of_token) {
                tokens[*expert as usize].push(token as u32);
                weights[*expert as usize].push(*weight);
            }
        }
        tokens.into_iter().zip(weights).enumerate().filter(|(_, (tokens, _))| !tokens.is_empty()).map(
            |(expert, (tokens, weights))| TokenGroup {
                expert: self.first_slot + expert,
                tokens: run_or_picked(tokens),
                weights: Some(weights),
            },
        )
    }

    /// Shows a choice to an observer.
    pub(crate) fn show(&self, chosen: &Chosen, site: usize, rows: &SequenceBatch, observer: &dyn Observer) {
        observer.observe(&RoutingDecision {
            site,
            projections: self.projections.clone(),
            rows,
            per_token: chosen.per_token,
            experts: &chosen.experts,
            weights: &chosen.weights,
        });
    }

    /// The highest scores with their experts, highest first; of equal ones the first keeps its place.
    fn highest(&self, scores: &[f32], experts: &mut [u32], best: &mut [f32]) {
        best.fill(f32::NEG_INFINITY);
        // NaN displaces nothing: what remains must still be candidates.
        experts.copy_from_slice(&self.candidates[..experts.len()]);
        for (score, expert) in scores.iter().zip(&self.candidates) {
            let score = self.sign.apply(*score);
            let mut place = best.len();
            while place > 0 && score > best[place - 1] {
                place -= 1;
            }
            if place < best.len() {
                best.copy_within(place..best.len() - 1, place + 1);
                experts.copy_within(place..experts.len() - 1, place + 1);
                (best[place], experts[place]) = (score, *expert);
            }
        }
    }
}

/// `softmax(scores / temperature)`, in place.
fn softmax(scores: &mut [f32], temperature: f32) {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = ((*score - highest) / temperature).exp();
        sum += *score;
    }
    scores.iter_mut().for_each(|score| *score /= sum);
}

/// Ascending tokens, as a range if they are contiguous: a range is read in place, not gathered.
fn run_or_picked(tokens: Vec<u32>) -> TokenSelection {
    match (tokens.first(), tokens.last()) {
        (Some(&first), Some(&last)) if (last - first) as usize + 1 == tokens.len() => {
            TokenSelection::Contiguous(first as usize..last as usize + 1)
        }
        _ => TokenSelection::Indices(tokens),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn choice_among(candidates: usize) -> TopK {
        TopK {
            columns: one_run(0..candidates),
            candidates: (0..candidates as u32).collect(),
            first_slot: 0,
            projections: 0..1,
            sign: ScoreSign::Ignored,
        }
    }

    #[test]
    fn ties_go_to_the_first_name() {
        let chosen = choice_among(4).choose(&[1.0, -3.0, 3.0, -3.0], 4, 2, 1.0);
        assert_eq!(chosen.experts, [1, 2]);
        assert_eq!(chosen.weights, [0.5, 0.5]);
    }

    #[test]
    fn signed_scores_are_compared_with_their_sign() {
        let chosen = TopK { sign: ScoreSign::Kept, ..choice_among(3) }.choose(&[1.0, -3.0, 2.0], 3, 2, 1.0);
        assert_eq!(chosen.experts, [2, 0]);
    }

    #[test]
    fn nan_scores_choose_candidates_and_propagate() {
        let choice = TopK { candidates: vec![5, 6, 7], ..choice_among(3) };
        let chosen = choice.choose(&[f32::NAN; 3], 3, 2, 1.0);
        assert_eq!(chosen.experts, [5, 6]);
        assert!(chosen.weights.iter().all(|weight| weight.is_nan()));
    }

    #[test]
    fn selection_agrees_with_a_stable_sort() {
        let scores: Vec<f32> = (0..600u32).map(|i| ((i * 7919 % 101) as f32 - 50.0) / 10.0).collect();
        let chosen = choice_among(30).choose(&scores, 30, 5, 1.0);
        for (row, experts) in scores.chunks(30).zip(chosen.experts.chunks(5)) {
            let mut order: Vec<u32> = (0..30).collect();
            order.sort_by(|a, b| row[*b as usize].abs().total_cmp(&row[*a as usize].abs()));
            assert_eq!(experts, &order[..5]);
        }
    }

    #[test]
    fn temperature_divides_the_scores_of_the_chosen() {
        let chosen = choice_among(3).choose(&[2.0, 0.0, 1.0], 3, 2, 0.5);
        let expected = 1.0 / (1.0 + (-2.0f32).exp());
        assert!((chosen.weights[0] - expected).abs() < 1e-6, "{:?}", chosen.weights);
    }

    #[test]
    fn an_expert_that_is_left_out_is_no_candidate() {
        let choice = TopK { columns: one_run(1..5), candidates: vec![4, 5, 7, 9], ..choice_among(4) };
        // The first column and the last belong to other choices.
        let scores = [8.0, 1.0, -4.0, 3.0, 2.0, 9.0];
        let chosen = |choice: &TopK, top_k| {
            let chosen = choice.choose(&scores, 6, top_k, 1.0);
            (chosen.experts, chosen.weights)
        };
        for (left_out, rest) in [(4, [4.0, 3.0, 2.0]), (5, [1.0, 3.0, 2.0]), (7, [1.0, 4.0, 2.0]), (9, [1.0, 4.0, 3.0])]
        {
            let without = choice.without(left_out).unwrap();
            let candidates: Vec<u32> = choice.candidates.iter().copied().filter(|expert| *expert != left_out).collect();
            let alone = TopK { columns: one_run(0..3), candidates, ..choice.clone() };
            for top_k in [1, 2, usize::MAX] {
                let expected = alone.choose(&rest, 3, top_k, 1.0);
                assert_eq!(chosen(&without, top_k), (expected.experts, expected.weights), "{left_out} {top_k}");
                let of = |choice: &TopK, scores: &[f32]| {
                    let scores = Tensor::from_slice(scores, (1, scores.len()), &candle_core::Device::Cpu).unwrap();
                    choice.weigh(&scores, top_k, 1.0).unwrap().to_vec2::<f32>().unwrap()
                };
                assert_eq!(of(&without, &scores), of(&alone, &rest), "{left_out} {top_k}");
            }
        }
        assert_eq!(choice.without(6).unwrap().candidates, choice.candidates);
        let last = [4, 9, 5].into_iter().fold(choice, |choice, expert| choice.without(expert).unwrap());
        assert_eq!((&last.columns, &last.candidates), (&one_run(3..4), &vec![7]));
        assert!(last.without(7).is_none());
    }

    #[test]
    fn groups_gather_the_tokens_of_each_expert() {
        let chosen = choice_among(3).choose(&[5.0, 1.0, 0.0, 0.0, 1.0, 5.0, 5.0, 0.0, 1.0], 3, 1, 1.0);
        let groups: Vec<TokenGroup> = TopK { first_slot: 10, ..choice_among(3) }.groups(&chosen, 3).collect();
        assert_eq!(groups.iter().map(|g| g.expert).collect::<Vec<_>>(), [10, 12]);
        assert!(matches!(&groups[0].tokens, TokenSelection::Indices(tokens) if tokens == &[0, 2]));
        assert!(matches!(&groups[1].tokens, TokenSelection::Contiguous(run) if *run == (1..2)));
    }

    #[test]
    fn a_device_weighs_all_candidates_if_few_or_mostly_chosen() {
        let weighs = |candidates, tokens, top_k| choice_among(candidates).weighs_all(tokens, top_k);
        assert!(weighs(64, 1, 1) && weighs(256, 64, 4) && weighs(1000, 1, usize::MAX));
        assert!(!weighs(65, 1, 4) && !weighs(256, 63, 4) && !weighs(2000, 1000, 4));
    }
}
