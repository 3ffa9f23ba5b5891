//! Clusters of experts and of tasks, and both stages of MBC, with the binary and its bundled base.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;
mod four_tasks;

use binary::words;
use four_tasks::{QUICK, TASKS, names, train};
use serde_json::Value;
use std::fs;
use std::path::Path;

#[test]
fn two_stage_mbc() {
    let work = tempfile::tempdir().unwrap();
    let library = work.path().join("l");
    let options = "--mbc 2 --set max_steps=10 --set learning_rate=1e-2";
    let trained = train(&library, options).json();
    assert_eq!(names(&trained["private"], "experts").len(), 4);
    assert!(trained["private"]["experts"].as_array().unwrap().iter().all(|expert| expert["steps"] == 4));
    assert_eq!(names(&trained, "experts"), ["c0", "c1"]);
    for expert in trained["experts"].as_array().unwrap() {
        assert_eq!(expert["steps"].as_u64().unwrap(), 6 * expert["tasks"].as_array().unwrap().len() as u64);
    }
    let again = train(&library, options).json();
    let before = |document: &Value| {
        document["experts"].as_array().unwrap().iter().all(|expert| expert["status"] == "finished before")
    };
    assert!(before(&again) && before(&again["private"]));
    // The same in separate commands: two trainings, with clustering in between.
    let (private, file) = (work.path().join("private"), library.join("clusters.json"));
    train(&private, "--set max_steps=4 --set learning_rate=1e-2").ok();
    let by_hand = work.path().join("c.json");
    words(&format!("cluster --library {} -k 2 --out {}", private.display(), by_hand.display())).ok();
    let clusters =
        |file: &Path| serde_json::from_str::<Value>(&fs::read_to_string(file).unwrap()).unwrap()["tasks"].clone();
    assert_eq!(clusters(&by_hand), clusters(&file));
    let none = work.path().join("none");
    assert!(train(&none, "--mbc 9").failed(1).contains("--mbc 9: expected at most 4, the number of tasks"));
    assert!(!none.exists(), "refused before the first stage");
    let message = train(&library, "--mbc 2 --set max_steps=1").failed(1);
    assert!(message.contains("`max_steps` is 1"), "{message}");
    // Other clusters do not replace those that the experts were trained on.
    let before = fs::read(&file).unwrap();
    let message = train(&library, &options.replace("--mbc 2", "--mbc 3")).failed(1);
    assert!(message.contains("clusters.json") && message.contains("--restart"), "{message}");
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn a_restart_with_fewer_clusters_removes_the_experts_of_the_others() {
    let work = tempfile::tempdir().unwrap();
    let library = work.path().join("l");
    let options = |k: usize| format!("--mbc {k} --set max_steps=5 --set learning_rate=1e-2");
    let listed = || -> Vec<String> {
        let document = words(&format!("library ls --json --library {}", library.display())).json();
        document["experts"].as_array().unwrap().iter().map(|own| own["name"].as_str().unwrap().to_owned()).collect()
    };
    train(&library, &options(4)).ok();
    assert_eq!(listed(), ["c0", "c1", "c2", "c3"]);
    // Another expert under the name of a cluster is the user's.
    let other = library.join("private/experts/shift_up1");
    fs::remove_dir_all(library.join("experts/c3")).unwrap();
    let clusters: Value = serde_json::from_str(&fs::read_to_string(library.join("clusters.json")).unwrap()).unwrap();
    let is_other = clusters["tasks"]["c3"] != serde_json::json!(["shift_up1"]);
    let name = if is_other { "shift_up1" } else { "shift_up2" };
    words(&format!("library add --library {} c3={}", library.display(), other.with_file_name(name).display())).ok();
    let said = train(&library, &format!("{} --restart", options(2))).ok().stderr;
    assert!(said.contains("c2: removed") && !said.contains("c3: removed"), "{said}");
    assert_eq!(listed(), ["c0", "c1", "c3"]);
}

#[test]
fn the_plan_of_both_stages_of_mbc_shows_what_is_known() {
    let work = tempfile::tempdir().unwrap();
    let library = work.path().join("l");
    let options = "--mbc 2 --set max_steps=10 --set learning_rate=1e-2";
    let plan = || -> Value { train(&library, &format!("{options} --plan")).json() };
    let of = |document: &Value, stage: &str| -> Vec<Value> {
        let passes = document["passes"].as_array().unwrap().iter();
        passes.filter(|pass| pass["stage"] == stage).cloned().collect()
    };
    let before = plan();
    assert!(!library.exists(), "a plan writes nothing");
    assert_eq!((&before["clusters_known"], of(&before, "clusters")), (&Value::from(false), vec![]));
    let first = of(&before, "private");
    assert_eq!(first.iter().map(|pass| pass["experts"].as_array().unwrap().len()).sum::<usize>(), 4);
    assert!(first.iter().all(|pass| pass["steps"] == 4 && pass["finished"] == false), "{first:?}");
    let lines = words(&format!(
        "train-experts --base pico --library {} --tasks {TASKS} {QUICK} {options} --plan",
        library.display()
    ))
    .ok();
    assert!(lines.stdout.lines().all(|line| line.starts_with("{\"stage\":\"private\"")), "{}", lines.stdout);
    assert!(lines.stderr.contains("known once the experts per task are clustered"), "{}", lines.stderr);
    train(&library, options).ok();
    let after = plan();
    assert_eq!(after["clusters_known"], true);
    assert!(after["passes"].as_array().unwrap().iter().all(|pass| pass["finished"] == true), "{after}");
    let clustered: Vec<Value> =
        of(&after, "clusters").iter().flat_map(|pass| pass["experts"].as_array().unwrap().clone()).collect();
    assert_eq!(clustered, ["c0", "c1"]);
    // A number that is to be chosen may be the one of the file.
    let auto = train(&library, &format!("{} --plan", options.replace("--mbc 2", "--mbc auto"))).json();
    assert_eq!(auto["clusters_known"], true);
    // Another number of clusters is refused, as by the command itself.
    let other = train(&library, &format!("{} --plan", options.replace("--mbc 2", "--mbc 3"))).failed(1);
    assert!(other.contains("clusters.json") && other.contains("--restart"), "{other}");
    // Trained anew, the first stage gives other clusters.
    let anew = train(&library, &format!("{options} --plan --restart")).json();
    assert_eq!((&anew["clusters_known"], of(&anew, "clusters")), (&Value::from(false), vec![]));
}

#[test]
fn tasks_in_no_cluster_are_announced() {
    let work = tempfile::tempdir().unwrap();
    let (file, library) = (work.path().join("c.json"), work.path().join("l"));
    let two = "suite:skills/shift_up1 suite:skills/order_left";
    words(&format!("cluster --method random -k 1 --tasks {two} --out {}", file.display())).ok();
    let said = train(&library, &format!("--set max_steps=1 --clusters {}", file.display())).ok().stderr;
    assert!(said.contains("2 tasks of --tasks") && said.contains("`shift_up2`, `order_reverse`"), "{said}");
    let options = format!("-k 1 --library {} --out {}", library.display(), file.display());
    let refused = words(&format!("cluster --method random {options} --tasks nosuchfile.jsonl")).failed(2);
    assert!(refused.contains("--method random") && refused.contains("--tasks"), "{refused}");
}

#[test]
fn clusters_by_embedding() {
    let work = tempfile::tempdir().unwrap();
    let (file, library) = (work.path().join("c.json"), work.path().join("l"));
    let cluster = |options: &str| {
        words(&format!("cluster --json --method embedding --tasks {TASKS} -k 2 --out {} {options}", file.display()))
    };
    let found = cluster("--base pico").json();
    let sets: Vec<&str> =
        found["clusters"].as_array().unwrap().iter().map(|c| c["tasks"][0].as_str().unwrap()).collect();
    assert_eq!(sets, ["order_left", "shift_up1"]);
    assert_eq!(found["clusters"][1]["tasks"][1], "shift_up2");
    assert_eq!(cluster("").code, 2, "no base");

    train(&library, "--set max_steps=1").ok();
    let of_experts = cluster(&format!("--base pico --library {}", library.display())).json();
    assert_eq!(of_experts["report"]["clusters"].as_array().unwrap().len(), 2);
    let clusters: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(clusters["method"], "embedding");
    assert_eq!(clusters["clusters"]["c0"], serde_json::json!(["order_left", "order_reverse"]));
    train(&work.path().join("k"), &format!("--set max_steps=1 --clusters {}", file.display())).ok();
    let one = words(&format!(
        "cluster --method embedding --base pico --tasks suite:skills/shift_up1 -k 1 --out {} --library {}",
        file.display(),
        library.display()
    ));
    let message = one.failed(1);
    assert!(message.contains("is missing from --tasks"), "{message}");
}

#[test]
fn silhouettes_are_of_the_clustered_space() {
    let work = tempfile::tempdir().unwrap();
    let library = work.path().join("l");
    train(&library, "--set max_steps=12 --set learning_rate=2e-2 --set warmup_ratio=0.5").ok();
    let line = format!("cluster -k 2 --library {} --out {}", library.display(), work.path().join("c.json").display());
    for space in ["parameters", "change", "delta"] {
        let report = words(&format!("{line} --json --space {space}")).json()["report"].clone();
        assert_eq!(report["space"], space);
        let own = report["spaces"].as_array().unwrap().iter().find(|own| own["space"] == space).unwrap();
        let clusters = report["clusters"].as_array().unwrap().iter();
        let members = clusters.flat_map(|cluster| cluster["members"].as_array().unwrap());
        let sum: f64 = members.map(|member| member["silhouette"].as_f64().unwrap()).sum();
        assert!((sum / 4.0 - own["silhouette"].as_f64().unwrap()).abs() < 1e-9, "{report}");
        let text = words(&format!("{line} --space {space}")).ok().stdout;
        let mean = text.split("mean silhouette, ").nth(1).unwrap().split(',').next().unwrap();
        assert!(text.matches(mean).count() > 1, "{mean} is not in both the table and the sentence: {text}");
    }
    assert_eq!(words(&format!("{line} --json --method random")).json()["report"]["space"], "delta");
}

#[test]
fn tasks_are_clustered_without_a_library() {
    let work = tempfile::tempdir().unwrap();
    let file = |form: &str| {
        let out = work.path().join("made").join(form);
        let options = format!("--method random -k 2 --format {form} --out {}", out.display());
        words(&format!("cluster --tasks {TASKS} {options}")).ok();
        serde_json::from_str::<Value>(&fs::read_to_string(out).unwrap()).unwrap()
    };
    assert!(file("lorakit").get("method").is_some());
    let mttl = file("mttl");
    assert!(mttl.get("method").is_none() && mttl.to_string().contains("order_left"), "{mttl}");
}
