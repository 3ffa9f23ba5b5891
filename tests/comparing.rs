//! `compare` with the binary, and what `eval` says of routers side by side.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;

use binary::{assert_contains, run};
use std::fs;
use std::path::Path;

/// The results of two routers on eight tasks, of which the second is better by `gain` on each.
fn write_run(folder: &Path, gain: f64) {
    let task = |at: usize, more: f64| {
        format!(r#""t{at}": {{"n": 10, "metrics": {{"acc": {{"value": {}, "stderr": 0.1}}}}}}"#, 0.1 * at as f64 + more)
    };
    let router = |more: f64| (0..8).map(|at| task(at, more)).collect::<Vec<_>>().join(", ");
    fs::create_dir_all(folder.join("private.eval")).unwrap();
    let text = format!(r#"{{"results": {{"base": {{{}}}, "arrow": {{{}}}}}}}"#, router(0.0), router(gain));
    fs::write(folder.join("private.eval/results.json"), text).unwrap();
}

const TABLE: &str = r#"
title = "Both"
papers = ["Phi-2"]

[[column]]
name = "accuracy, %"
metric = "acc"
scale = 100

[[row]]
label = "base"
results = "private.eval"
router = "base"
paper = { "Phi-2" = 63.8 }

[[row]]
label = "Arrow"
sees = "weights"
results = "private.eval"
router = "arrow"

[[claim]]
text = "Arrow helps"
better = "Arrow"
worse = "base"
"#;

#[test]
fn a_table_has_the_paper_s_numbers_and_a_verdict_over_tasks_and_seeds() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    write_run(&folder.path().join("seed-0"), 0.04);
    write_run(&folder.path().join("seed-1"), 0.06);
    fs::write(path("table.toml"), TABLE).unwrap();
    let (table, runs, out) = (path("table.toml"), [path("seed-0"), path("seed-1")], path("out"));
    let ran = run(["compare", &table, "--runs", &runs[0], &runs[1], "--out", &out]).ok();
    assert_contains(&ran.stdout, &["| base |  | 35.0 ±0.0 | 63.8 |"]);
    assert_contains(&ran.stdout, &["| Arrow | weights | 40.0 ±1.0 | not available |"]);
    assert_contains(&ran.stdout, &["± is the standard error over seeds."]);
    let alone = run(["compare", &table, "--runs", &runs[0]]).ok();
    assert_contains(&alone.stdout, &["± is the standard error over rows."]);
    // Every task gains five points in the mean over seeds; another draw of seeds gives four to six, which is
    // widened by 1.290 for eight tasks.
    assert_contains(&ran.stdout, &["+5.00"]);
    assert_contains(&ran.stdout, &["+3.71 to +6.29 | 8, 2 | **held** |"]);
    assert_eq!(fs::read_to_string(path("out/table.md")).unwrap().trim_end(), ran.stdout.trim_end());
    let document: serde_json::Value = serde_json::from_slice(&fs::read(path("out/results.json")).unwrap()).unwrap();
    assert_eq!(document["claims"][0]["verdict"], "held");
    // What a cell is the mean of is kept, by task and run.
    let values: Vec<Vec<f64>> = serde_json::from_value(
        ["t0", "t7"].map(|task| document["rows"][1]["scores"]["accuracy, %"]["values"][task].clone()).into(),
    )
    .unwrap();
    assert_eq!(values.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
    for (value, expected) in values.concat().into_iter().zip([4.0, 6.0, 74.0, 76.0]) {
        assert!((value - expected).abs() < 1e-9, "{value} {expected}");
    }

    // The best of the runs for each task, which is marked by what it sees.
    let best = "[[row]]\nlabel = \"best\"\nsees = \"test rows\"\nresults = \"private.eval\"\nrouter = \"arrow\"\naggregation = \"best\"\n";
    fs::write(path("best.toml"), format!("{TABLE}{best}")).unwrap();
    let ran = run(["compare", &path("best.toml"), "--runs", &runs[0], &runs[1]]).ok();
    assert_contains(&ran.stdout, &["| best | test rows | 41.0 ±"]);

    // A row without results is a warning, and under --strict an error.
    fs::write(path("more.toml"), format!("{TABLE}[[row]]\nlabel = \"tp\"\nresults = \"x.eval\"\nrouter = \"tp\"\n"))
        .unwrap();
    let (more, runs) = (path("more.toml"), &runs[0]);
    assert_contains(&run(["compare", &more, "--runs", runs]).ok().stderr, &["row `tp` has no results"]);
    assert_contains(&run(["compare", &more, "--runs", runs, "--strict"]).failed(1), &["row `tp` has no results"]);

    // In four families of two tasks, which are too few to decide; with one family of two among seven, held again.
    let first = path("seed-0");
    for (families, expected) in [
        (r#"["t[01]", "t[23]", "t[45]", "t[67]", "u"]"#, "| 4 families of 8 tasks, 1 seed | **undecided** |"),
        (r#"["t[01]"]"#, "| 7 families of 8 tasks, 1 seed | **held** |"),
    ] {
        fs::write(path("families.toml"), format!("families = {families}\n{TABLE}")).unwrap();
        let ran = run(["compare", "--strict", &path("families.toml"), "--runs", &first, "--out", &out]).ok();
        assert_contains(&ran.stdout, &["| claim | gain | 95 % interval | drawn | verdict |", expected]);
        let document: serde_json::Value = serde_json::from_slice(&fs::read(path("out/results.json")).unwrap()).unwrap();
        assert_eq!(document["families"]["t[01]"], serde_json::json!(["t0", "t1"]));
        assert_eq!(document["claims"][0]["gain"]["tasks"], 8);
        assert_contains(&fs::read_to_string(path("out/differences.svg")).unwrap(), &["families"]);
    }
    fs::write(path("families.toml"), format!("families = [\"t[01]\", \"0\"]\n{TABLE}")).unwrap();
    let message = run(["compare", &path("families.toml"), "--runs", &first]).failed(1);
    assert_contains(&message, &["families.toml", "the task `t0` is in two: `t[01]` and `0`"]);
}

#[test]
fn own_experts_that_do_not_beat_the_base_test_no_claim() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    write_run(&folder.path().join("seed-0"), 0.04);
    let runs = &path("seed-0");
    for (own, beaten, verdict) in [("Arrow", "base", "held"), ("base", "Arrow", "not testable here")] {
        let text = format!("{TABLE}[testable]\nown = \"{own}\"\nbeats = [\"{beaten}\"]\n");
        fs::write(path("testable.toml"), text).unwrap();
        let ran = run(["compare", &path("testable.toml"), "--runs", runs]).ok();
        assert_contains(&ran.stdout, &[&format!("| **{verdict}** |")]);
        // A claim's own rows count before those of the table.
        let of_claim = format!("testable = {{ own = \"{own}\", beats = [\"{beaten}\"] }}\n");
        let of_table = format!("[testable]\nown = \"{beaten}\"\nbeats = [\"{own}\"]\n");
        fs::write(path("own.toml"), format!("{TABLE}{of_claim}{of_table}")).unwrap();
        let ran = run(["compare", &path("own.toml"), "--runs", runs]).ok();
        assert_contains(&ran.stdout, &[&format!("| **{verdict}** |")]);
    }
}

#[test]
fn a_mean_of_columns_pairs_the_tasks_that_both_rows_have() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let task = |name: &str, accuracy: f64| {
        format!(r#""{name}": {{"n": 10, "metrics": {{"acc": {{"value": {accuracy}, "stderr": 0.1}}}}}}"#)
    };
    let base = [task("hard", 0.2), task("easy", 0.8), task("other", 0.5)].join(", ");
    let arrow = [task("easy", 0.7), task("other", 0.5)].join(", ");
    fs::create_dir_all(path("run/private.eval")).unwrap();
    let text = format!(r#"{{"results": {{"base": {{{base}}}, "arrow": {{{arrow}}}}}}}"#);
    fs::write(path("run/private.eval/results.json"), text).unwrap();
    let columns = "mean = \"mean of 2\"\n\n[[column]]\nname = \"one\"\ntasks = [\"other\"]\nmetric = \"acc\"\nscale = 100\n\n\
                   [[column]]\nname = \"two\"\ntasks = [\"hard\", \"easy\"]\n";
    let table = TABLE.replace("[[column]]\nname = \"accuracy, %\"\n", columns);
    fs::write(path("table.toml"), table).unwrap();
    // Arrow lacks the hard task, so that its column's mean is the higher one; on the easy task it is ten points worse.
    let ran = run(["compare", &path("table.toml"), "--runs", &path("run")]).ok();
    assert_contains(&ran.stdout, &["| Arrow | weights | 50.0 ±10.0 | 70.0 ±10.0 |", "| -5.00 ±"]);
    assert_contains(&ran.stderr, &["row `Arrow`: not every run has all 2 tasks of two; one has 1"]);
}

#[test]
fn eval_scores_chance_and_writes_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("report.html").display().to_string();
    let rows: String = (0..60).map(|i| format!("{{\"input\": \"+1:a{i};\", \"output\": \"b\"}}\n")).collect();
    let tasks: Vec<String> = (0..6)
        .map(|task| {
            let path = folder.path().join(format!("task{task}.jsonl"));
            fs::write(&path, rows.replace("+1", &format!("+{task}"))).unwrap();
            path.display().to_string()
        })
        .collect();
    let fixed = ["eval", "--json", "--base", "pico", "--router", "base", "--chance", "--limit", "2", "--report", &page];
    let metrics = ["--metrics", "loss", "exact_match", "--tasks"];
    let ran = run(fixed.into_iter().chain(metrics).chain(tasks.iter().map(String::as_str))).ok();
    let document = ran.json();
    let value = |router: &str| document["results"][router]["task0"]["metrics"]["exact_match"]["value"].as_f64();
    assert_eq!(value("chance"), Some(1.0), "every answer is the same: {document}");
    assert_eq!(document["gains"]["exact_match"]["chance"]["tasks"], 6);
    let html = fs::read_to_string(page).unwrap();
    assert!(html.contains("2 routers on 6 tasks") && html.contains("task5"), "{html}");
}

/// The library of two experts over pico, `join_dash` and `shift_up1`.
fn two_experts() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/library_0.1").display().to_string()
}

#[test]
fn eval_measures_the_responses_of_own_experts_for_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (library, out, page) = (two_experts(), path("seed-0/private.upstream"), path("page.html"));
    let tasks = ["suite:skills/join_dash", "suite:skills/shift_up1", "suite:skills/shift_down1"];
    let eval = |more: &[&str]| {
        let fixed = ["eval", "--base", "pico", "--library", &library, "--limit", "3", "--metrics", "loss", "--tasks"];
        let routers = ["--router", "base", "oracle", "--response-ratio"];
        run([&fixed[..], &tasks, &routers, more].concat())
    };
    let ran = eval(&["--json", "--out", &out, "--log-samples"]);
    // The oracle fails on the task without an expert, and all else is kept.
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert_contains(&ran.stderr, &["response_ratio: 1 task left out; no expert was trained on the task `shift_down1`"]);
    let text = fs::read_to_string(path("seed-0/private.upstream/results.json")).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let measured = document["results"]["response_ratio"].as_object().unwrap();
    assert_eq!(measured.keys().collect::<Vec<_>>(), ["join_dash", "shift_up1"]);
    for (task, scores) in measured {
        let metrics = scores["metrics"].as_object().unwrap();
        assert_eq!(metrics.keys().collect::<Vec<_>>(), ["response_ratio"]);
        let samples = path(&format!("seed-0/private.upstream/samples_response_ratio_{task}.jsonl"));
        let rows = fs::read_to_string(samples).unwrap();
        let of_row = |line: &str| {
            let sample: serde_json::Value = serde_json::from_str(line).unwrap();
            sample["metrics"]["response_ratio"].as_f64().unwrap()
        };
        let ratios: Vec<f64> = rows.lines().map(of_row).collect();
        let mean = ratios.iter().sum::<f64>() / 3.0;
        let value = metrics["response_ratio"]["value"].as_f64().unwrap();
        assert!(ratios.len() == 3 && (mean - value).abs() < 1e-9 && mean > 0.0, "{ratios:?} {value}");
    }

    let shown = eval(&["--report", &page]);
    let lines: Vec<&str> = shown.stdout.lines().collect();
    let table = |metric: &str| lines.iter().find(|line| line.trim_start().starts_with(metric)).copied().unwrap_or("");
    assert!(!table("loss").contains("response_ratio"), "{}", shown.stdout);
    assert!(
        table("response_ratio").contains("rows") && !table("response_ratio").contains("oracle"),
        "{}",
        shown.stdout
    );
    assert!(!fs::read_to_string(page).unwrap().contains("response_ratio"));
    let spec = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tables/modular_llms_response_ratio.toml");
    let compared = run(["compare", &spec.display().to_string(), "--runs", &path("seed-0")]).ok();
    assert_contains(&compared.stdout, &["| private | 1.0", " ±0.0"]);
}

#[test]
fn a_response_ratio_needs_a_library_with_several_experts() {
    let fixed = ["eval", "--base", "pico", "--router", "base", "--response-ratio", "--tasks", "suite:skills/join_dash"];
    assert_contains(&run(fixed).failed(2), &["--library <L>"]);
    let (folder, from) = (tempfile::tempdir().unwrap(), two_experts());
    fs::create_dir_all(folder.path().join("experts/join_dash")).unwrap();
    fs::copy(Path::new(&from).join("library.json"), folder.path().join("library.json")).unwrap();
    for entry in fs::read_dir(Path::new(&from).join("experts/join_dash")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join("experts/join_dash").join(entry.file_name())).unwrap();
    }
    let library = folder.path().display().to_string();
    let refused = run(fixed.into_iter().chain(["--library", &library])).failed(1);
    assert_contains(&refused, &["the library has one expert", "with others"]);
}

#[test]
fn a_folder_of_results_is_one_seed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for seed in ["s0", "s1"] {
        write_run(&folder.path().join(seed), 0.04);
    }
    fs::write(path("table.toml"), TABLE).unwrap();
    let (table, run_folder) = (path("table.toml"), path("s0"));
    let twice = run(["compare", &table, "--runs", &run_folder, &path("s1"), &run_folder]).failed(2);
    assert_contains(&twice, &[&run_folder, "given twice"]);
    let other_way = run(["compare", &table, "--runs", &run_folder, &path("s1/../s0")]).failed(2);
    assert_contains(&other_way, &["s1/../s0", "are one folder"]);
}

#[test]
fn an_error_is_over_rows_where_one_run_has_scores() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    write_run(&folder.path().join("seed-0"), 0.04);
    write_run(&folder.path().join("seed-1"), 0.06);
    fs::rename(path("seed-0/private.eval"), path("seed-0/once.eval")).unwrap();
    let runs = [path("seed-0"), path("seed-1")];
    let table = |more: &str| {
        fs::write(path("table.toml"), format!("{TABLE}[[row]]\nlabel = \"x\"\nrouter = \"arrow\"\nx = 1\n{more}"))
            .unwrap();
        run(["compare", &path("table.toml"), "--runs", &runs[0], &runs[1], "--out", &path("out")]).ok().stdout
    };
    // Each row has the results of one run.
    assert_contains(&table("results = \"once.eval\"\n"), &["± is the standard error over rows."]);
    write_run(&folder.path().join("seed-0"), 0.04);
    let mixed = "over seeds (over the tasks' rows where a score is of one run or the best of several)";
    for more in ["results = \"once.eval\"\n", "results = \"private.eval\"\naggregation = \"best\"\n"] {
        assert_contains(&table(more), &[&format!("± is the standard error {mixed}.")]);
        for plot in ["out/scores.svg", "out/curves.svg"] {
            assert_contains(&fs::read_to_string(path(plot)).unwrap(), &["(over"]);
        }
    }
}

#[test]
fn misspelled_routers_and_metrics_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    write_run(&folder.path().join("run"), 0.04);
    let said = |table: &str| {
        fs::write(path("table.toml"), table).unwrap();
        run(["compare", &path("table.toml"), "--runs", &path("run")]).stderr
    };
    let router = said(&TABLE.replace("router = \"arrow\"", "router = \"arow\""));
    assert_contains(
        &router,
        &["row `Arrow`: no results of router `arow` (did you mean `arrow`?)", "there are arrow, base"],
    );
    let metric = said(&TABLE.replace("metric = \"acc\"", "metric = \"ac\""));
    assert_contains(
        &metric,
        &["column `accuracy, %`: no metric `ac` (did you mean `acc`?); there are acc", "none of the rows"],
    );
    assert!(!metric.contains("row `base`"), "{metric}");
    let task = said(&TABLE.replace("scale = 100", "tasks = [\"u0\"]"));
    assert_contains(&task, &["column `accuracy, %`: none of its tasks has `acc`; there are the tasks t0, t1"]);
}

#[test]
fn a_row_without_the_metric_of_the_others_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::create_dir_all(path("run/private.eval")).unwrap();
    let of = |metric: &str| format!(r#"{{"t": {{"n": 2, "metrics": {{"{metric}": {{"value": 0.5}}}}}}}}"#);
    let text = format!(r#"{{"results": {{"base": {}, "arrow": {}}}}}"#, of("acc"), of("loss"));
    fs::write(path("run/private.eval/results.json"), text).unwrap();
    fs::write(path("table.toml"), TABLE).unwrap();
    let ran = run(["compare", &path("table.toml"), "--runs", &path("run")]).ok();
    assert_contains(&ran.stderr, &["row `Arrow`: no metric `acc`; there are loss"]);
}

#[test]
fn texts_of_a_table_are_single_cells_of_markdown() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    write_run(&folder.path().join("run"), 0.04);
    let table = TABLE
        .replace("\"accuracy, %\"", "\"P(a|b)\"")
        .replace("\"Arrow\"", "\"Arrow |\\ntop 1\"")
        .replace("\"Arrow helps\"", "\"x | y\"")
        .replace("\"Both\"", "\"Both\\n# parts\"");
    fs::write(path("table.toml"), table).unwrap();
    let markdown = run(["compare", &path("table.toml"), "--runs", &path("run")]).ok().stdout;
    assert_contains(&markdown, &["## Both # parts\n", r"|  | sees | P(a\|b) |", r"| Arrow \| top 1 | weights |"]);
    assert_contains(&markdown, &[r"| x \| y (Arrow \| top 1 over base: P(a\|b)) | +4.00"]);
}

#[test]
fn gains_have_the_digits_of_their_column_and_the_units_that_were_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    write_run(&folder.path().join("run"), 0.04);
    let compare = |table: &str| {
        fs::write(path("table.toml"), table).unwrap();
        let ran = run(["compare", &path("table.toml"), "--runs", &path("run"), "--out", &path("out")]).ok();
        (ran.stdout, fs::read_to_string(path("out/differences.svg")).unwrap().replace("</text>", " "))
    };
    let (markdown, svg) = compare(&TABLE.replace("scale = 100", "digits = 4"));
    assert_contains(&markdown, &["| +0.0400 ±0.0000 | +0.0400 to +0.0400 | 8, 1 |", "| tasks, seeds |"]);
    assert_contains(
        &svg,
        &["held: +0.0400, 95 % from +0.0400 to +0.0400", "<title>t0: +0.0400</title>", "on one task"],
    );
    let columns: String =
        (0..8).map(|at| format!("[[column]]\nname = \"c{at}\"\nmetric = \"acc\"\ntasks = [\"t{at}\"]\n")).collect();
    let (head, rows) = TABLE.split_once("[[column]]").unwrap();
    let rows = &rows[rows.find("[[row]]").unwrap()..];
    let (markdown, svg) = compare(&format!("{head}mean = \"mean of 8\"\n{columns}{rows}"));
    assert_contains(&markdown, &["| columns, seeds |", "| 8, 1 |"]);
    assert_contains(&svg, &["in one column"]);
    assert!(!svg.contains("task,") && !svg.contains("tasks"), "{svg}");
}

#[test]
fn the_results_that_are_compared_are_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    write_run(&folder.path().join("seed-0"), 0.04);
    fs::write(path("table.toml"), TABLE).unwrap();
    let (table, run_folder, out) = (path("table.toml"), path("seed-0"), path("seed-0/./private.eval"));
    let refused = run(["compare", &table, "--runs", &run_folder, "--out", &out]).failed(2);
    assert_contains(&refused, &["--out", "its results.json is among those that are compared"]);
}
