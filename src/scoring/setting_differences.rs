//! In which settings results that are kept differ from a run's, so that their scores cannot be compared.

use crate::args::router_arg::RouterArg;
use lorakit_task::Task;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What a base and its precision are must be the same for all results.
const OF_ALL: [&str; 3] = ["base", "dtype", "quantize_activations"];

/// These count where a task is scored by routers of both.
const OF_A_TASK: [&str; 5] = ["encoding", "limit", "num_fewshot", "scoring_rules", "split"];

/// A run that results are compared with.
pub struct CurrentRun<'a> {
    /// Its configuration, as results.json has it.
    pub config: &'a Value,
    /// Its routers.
    pub routers: &'a [RouterArg],
    /// Its tasks.
    pub tasks: &'a [Task],
}

impl CurrentRun<'_> {
    /// The settings in which earlier results, the tasks of each router, differ from the run. Those that the run replaces do
    /// not count; nor, of the settings of a task, those of other tasks, which a script may score in another way.
    pub fn differing_settings(
        &self,
        config: &Value,
        results: &BTreeMap<String, BTreeSet<String>>,
    ) -> Vec<&'static str> {
        let scored = |task: &String| self.tasks.iter().any(|own| own.name == *task);
        let replaced = |router: &String| self.routers.iter().any(|own| own.text == *router);
        let pairs = results.iter().flat_map(|(router, tasks)| tasks.iter().map(move |task| (router, task)));
        let kept: Vec<_> = pairs.filter(|(router, task)| !(replaced(router) && scored(task))).collect();
        let shared: Vec<_> = kept.iter().filter(|(_, task)| scored(task)).collect();
        let mut keys = Vec::new();
        if !kept.is_empty() {
            keys.extend(self.differing(&OF_ALL, config));
        }
        if shared.is_empty() {
            return keys;
        }
        keys.extend(self.differing(&OF_A_TASK, config));
        // The base draws nothing.
        if shared.iter().any(|(router, _)| *router != "base") {
            keys.extend(self.differing(&["seed"], config));
        }
        let base_alone = |config: &Value| config["experts"].is_null();
        if !base_alone(config) && !base_alone(self.config) {
            keys.extend(self.differing(&["experts", "library"], config));
        }
        let tasks: BTreeSet<&str> = shared.iter().map(|(_, task)| task.as_str()).collect();
        let (before, now) = (row_identities(&config["tasks"]), row_identities(&self.config["tasks"]));
        // One file may be read as more or fewer rows by another version, which may not have recorded the others.
        let known = ["rows", "generation", "fewshot"]
            .map(|key| (of_tasks(&config["tasks"], key), of_tasks(&self.config["tasks"], key)));
        let same = |task: &str| {
            before.get(task).zip(now.get(task)).is_none_or(|(before, now)| before == now)
                && known.iter().all(|(before, now)| before.get(task).zip(now.get(task)).is_none_or(|(a, b)| a == b))
        };
        if !tasks.into_iter().all(same) {
            keys.push("tasks");
        }
        // Other routers are the same whatever the tasks of --fit.
        let is_fitted = |typed: &RouterArg| typed.router.training_data().is_some();
        let kept_fit = shared.iter().any(|(router, _)| router.parse().is_ok_and(|typed| is_fitted(&typed)));
        if kept_fit
            && self.routers.iter().any(is_fitted)
            && row_identities(&config["fit"]) != row_identities(&self.config["fit"])
        {
            keys.push("fit");
        }
        keys
    }

    fn differing(&self, keys: &[&'static str], config: &Value) -> Vec<&'static str> {
        keys.iter().copied().filter(|key| config[key] != self.config[key]).collect()
    }
}

/// The rows and the split of each task in a list of a configuration.
fn row_identities<'a>(tasks: &'a Value) -> BTreeMap<&'a str, (&'a Value, &'a Value)> {
    let rows = |task: &'a Value| Some((task["name"].as_str()?, (&task["sha256"], &task["split_seed"])));
    tasks.as_array().into_iter().flatten().filter_map(rows).collect()
}

/// What each task in a list of a configuration has under a key, where that is recorded.
fn of_tasks<'a>(tasks: &'a Value, key: &str) -> BTreeMap<&'a str, &'a Value> {
    let of = |task: &'a Value| Some((task["name"].as_str()?, task.get(key)?));
    tasks.as_array().into_iter().flatten().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn only_scores_of_one_kind_are_compared() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.jsonl");
        std::fs::write(&file, "{\"input\": \"x\", \"output\": \"y\"}\n").unwrap();
        let tasks = Task::load(&file.display().to_string(), None).unwrap();
        let routers: Vec<RouterArg> = ["uniform", "cm"].iter().map(|text| text.parse().unwrap()).collect();
        let config = json!({
            "base": "b", "seed": 0, "split": "test", "experts": ["e"], "library": "l", "fit": [],
            "tasks": [{"name": "a", "sha256": "1", "split_seed": 0, "rows": 4,
                "generation": {"max_new_tokens": 64}, "fewshot": {"fewshot_delimiter": "\n"}}],
        });
        let run = CurrentRun { config: &config, routers: &routers, tasks: &tasks };
        let with = |key: &str, value: Value| {
            let mut other = config.clone();
            other[key] = value;
            other
        };
        let keys = |router: &str, task: &str, other: &Value| {
            let results = BTreeMap::from([(router.to_owned(), BTreeSet::from([task.to_owned()]))]);
            run.differing_settings(other, &results)
        };
        let fewer = with("num_fewshot", json!(2));
        assert_eq!(keys("base", "a", &config), [""; 0]);
        assert_eq!(keys("base", "a", &fewer), ["num_fewshot"]);
        assert_eq!(keys("uniform", "a", &fewer), [""; 0], "it is replaced");
        assert_eq!(keys("uniform", "b", &fewer), [""; 0], "it is another task");
        assert_eq!(keys("uniform", "b", &with("base", json!("c"))), ["base"]);
        assert_eq!(keys("base", "a", &with("encoding", json!({"chat": true}))), ["encoding"]);
        for key in ["encoding", "limit", "num_fewshot", "scoring_rules", "split"] {
            assert_eq!(keys("base", "a", &with(key, json!("x"))), [key]);
        }
        for key in ["base", "dtype", "quantize_activations"] {
            assert_eq!(keys("uniform", "b", &with(key, json!("x"))), [key]);
        }
        assert_eq!(keys("arrow", "a", &with("library", json!("m"))), ["library"]);
        let other_split = json!([{"name": "a", "sha256": "1", "split_seed": 1}]);
        assert_eq!(keys("base", "a", &with("tasks", other_split)), ["tasks"]);
        assert_eq!(keys("random", "a", &with("seed", json!(1))), ["seed"]);
        assert_eq!(keys("base", "a", &with("seed", json!(1))), [""; 0], "it draws nothing");
        assert_eq!(keys("base", "a", &with("experts", json!(null))), [""; 0], "the base needs no library");
        assert_eq!(keys("arrow", "a", &with("experts", json!(["e", "f"]))), ["experts"]);
        let rows = |sha256: &str| json!([{"name": "a", "sha256": sha256, "split_seed": 0}]);
        assert_eq!(keys("base", "a", &with("tasks", rows("2"))), ["tasks"]);
        assert_eq!(keys("base", "a", &with("tasks", rows("1"))), [""; 0], "the number of rows is not known");
        let more = json!([{"name": "a", "sha256": "1", "split_seed": 0, "rows": 5}]);
        assert_eq!(keys("base", "a", &with("tasks", more)), ["tasks"]);
        let given = |key: &str, value: Value| json!([{"name": "a", "sha256": "1", "split_seed": 0, key: value}]);
        assert_eq!(keys("base", "a", &with("tasks", given("generation", json!({"max_new_tokens": 8})))), ["tasks"]);
        assert_eq!(keys("base", "a", &with("tasks", given("generation", json!({"max_new_tokens": 64})))), [""; 0]);
        assert_eq!(keys("base", "a", &with("tasks", given("fewshot", json!({"fewshot_delimiter": " "})))), ["tasks"]);
        assert_eq!(keys("tp", "a", &with("fit", rows("2"))), ["fit"]);
        assert_eq!(keys("arrow", "a", &with("fit", rows("2"))), [""; 0], "it is not fitted");
    }
}
