//! The warning about rows that do not fit in the base's context, or whose answers do not fit in what is generated.

use lorakit_eval::TaskScores;
use lorakit_fit::pluralize;
use lorakit_task::Task;

/// One sentence with the number of rows that were cut, got fewer new tokens or need more of them; none if all fit.
pub fn warning(task: &Task, scores: &TaskScores, positions: usize) -> Option<String> {
    let (cut, max_new_tokens) = (&scores.truncated, task.generation.max_new_tokens);
    let parts = [
        (cut.prompts, "scored without the beginning of the prompt".to_owned()),
        (cut.answers, "scored without the end of the answer".to_owned()),
        (cut.generation_prompts, "continued without the beginning of the prompt".to_owned()),
        (cut.new_tokens, format!("continued with fewer new tokens than max_new_tokens = {max_new_tokens}")),
    ];
    let parts: Vec<String> =
        parts.iter().filter(|(rows, _)| *rows > 0).map(|(rows, what)| format!("{rows} {what}")).collect();
    let cut_parts = (!parts.is_empty()).then(|| format!("{}; the base supports {positions} tokens", parts.join(", ")));
    let long = (cut.long_answers > 0).then(|| {
        format!(
            "{} have only accepted answers longer than max_new_tokens = {max_new_tokens}, which a task TOML can raise",
            cut.long_answers
        )
    });
    let said: Vec<String> = cut_parts.into_iter().chain(long).collect();
    let all = pluralize(scores.n, "row");
    (!said.is_empty()).then(|| format!("task `{}`: of {all}, {}", task.name, said.join("; ")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use lorakit_eval::TruncatedRows;
    use std::collections::BTreeMap;

    #[test]
    fn the_warning_counts_rows() {
        let task = Task::load("suite:skills", None).unwrap().remove(0);
        let of = |truncated| {
            let scores = TaskScores { n: 9, metrics: BTreeMap::new(), samples: Vec::new(), truncated };
            warning(&task, &scores, 256)
        };
        assert_eq!(of(TruncatedRows::default()), None);
        let text = of(TruncatedRows { prompts: 2, new_tokens: 7, ..TruncatedRows::default() }).unwrap();
        let name = &task.name;
        let expected = format!(
            "task `{name}`: of 9 rows, 2 scored without the beginning of the prompt, 7 continued with fewer new tokens \
             than max_new_tokens = 24; the base supports 256 tokens"
        );
        assert_eq!(text, expected);
        let text = of(TruncatedRows { long_answers: 3, ..TruncatedRows::default() }).unwrap();
        let expected = "of 9 rows, 3 have only accepted answers longer than max_new_tokens = 24";
        assert!(text.contains(expected), "{text}");
    }
}
