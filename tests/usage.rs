//! Command-line usage: options, routers, settings and numbers, and the messages for invalid ones.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;

use binary::{Ran, assert_contains, command, peft_fixture, run, words};
use std::fs;

#[test]
fn usage_errors_exit_with_2() {
    for line in [
        "",
        "no-such-command",
        "train-experts --library l --tasks t",
        "train-experts --base b --library l --tasks t --joint --clusters c.json",
        "train-experts --base b --library l --tasks t --full --joint",
        "train-experts --base b --library l --tasks t --mbc 2 --experts c0",
        "train-experts --base b --library l --tasks t --random-examples 0",
        "train-experts --base b --library l --tasks t --random-examples 18446744073709551615",
        "train-experts --base b --library l --tasks t --poly 99999999999999",
        "verify --base b --library l --tokens 18446744073709551615",
        "cluster --library l --out c.json",
        "cluster --out c.json -k 2",
        "cluster --library l --out c.json -k 2 --method embedding --tasks t",
        "cluster --library l --out c.json -k 0",
        "cluster --library l --out c.json -k many",
        "cluster --library l --out c.json -k 2 --space words",
        "eval --base b --tasks t",
        "eval --base b --tasks t --router no_such_router",
        "eval --base b --tasks t --router arrow:top_k=0",
        "eval --base b --tasks t --router arrow:topk=1",
        "eval --base b --tasks t --router base --split testing",
        "eval --base b --tasks t --router base --limit 0",
        "eval --base b --tasks t --router base --log-samples",
        "logits --base b --input i --out o --library l",
        "library check",
        "library add --library l =x",
        "base info hub:nobody",
        "base info b --threads 0",
        "base info b --device tpu",
        "base info b --dtype f8",
        "completions tcl",
        "eval --base b --tasks t --router base arrow",
        "logits --base b --input i --out o --router uniform",
        "logits --base b --input i --out i",
        "cluster --out c.json -k 2 --tasks t",
        "cluster --library l --out c.json -k 2 --tasks t",
        "cluster --library l --out c.json -k 2 --report c.json",
        "cluster --out c.json -k 2 --tasks t --method random --experts a",
        "adapt --base b --tasks t --method mean --out o",
        "cluster --library l --out c.json -k auto --method random",
        "merge --library l --out o --method lorahub",
        "merge --library l --out o --method cat --fit t",
        "merge --library l --out o --method cat --bos never",
        "task ls x=",
        "task ls hub:org/name",
    ] {
        assert_usage_error(line);
    }
}

#[test]
fn usage_errors_of_generation_exit_with_2() {
    for line in [
        "generate --base b --prompt x --temperature 1 -n 1000000000000",
        "generate --base b --prompt x --temperature -1",
        "generate --base b --prompt x --top-p 0",
        "generate --base b --prompt x --adapter a --library l --router base",
        "generate --base b --prompt x --router arrow",
        "generate --base b --prompt x --stop=",
        "generate --base b --prompt p --top-p 0.5",
        "generate --base b --prompt p --top-k 5",
        "generate --base b --prompt p --min-p 0.1",
        "generate --base b --prompt p -n 2",
        "generate --base b --prompt p --temperature 1 --top-k 0",
        "generate --base b --prompt p --temperature 1 --min-p 1.5",
        "generate --base b --prompt p --repetition-penalty 0",
        "generate --base b",
        "generate --base b --input i.jsonl",
        "generate --base b --prompt p --output o.jsonl",
        "generate --base b --prompt p --input i.jsonl --output o.jsonl",
    ] {
        assert_usage_error(line);
    }
}

#[track_caller]
fn assert_usage_error(line: &str) {
    let ran = words(line);
    assert_eq!(ran.code, 2, "`{line}`: {}", ran.stderr);
    assert_eq!(ran.stdout, "", "`{line}`");
}

#[test]
fn options_report_what_they_expect() {
    let eval = "eval --base b --tasks t --router base";
    for (line, expected) in [
        ("generate --base b --prompt x --temperature -0.5", "at least 0"),
        ("generate --base b --prompt x --top-p -1", "above 0"),
        ("generate --base b --prompt x --max-new-tokens 0", "at least 1"),
        (&format!("{eval} --limit 0"), "at least 1"),
        (&format!("{eval} --limit -3"), "at least 1"),
        ("cluster --library l --out c.json -k -1", "at least 1"),
        ("cluster --library l --out c.json -k 2 --sparsity -1", "from 0 to 1"),
        ("cluster --library l --out c.json -k 2 --components 0", "at least 1"),
        ("cluster --library l --out c.json -k 2 --sparsity 0.5", "--sparsity applies to --method mbc with --space"),
        (
            "cluster --library l --out c.json -k 2 --method random --components 4",
            "--components applies to --method mbc",
        ),
        ("cluster --library l --out c.json -k 2 --method random --space change", "--space applies to --method mbc"),
        ("cluster --library l --out c.json -k 2 --rows 4", "--rows applies to --method embedding"),
        ("cluster --library l --out c.json -k 2 --method random --base pico", "--base applies to --method embedding"),
        ("cluster --library l --out c.json -k 2 --chat", "--chat applies to --method embedding"),
        ("cluster --library l --out c.json -k 2 --bos never", "--bos applies to --method embedding"),
        ("train-experts --base b --library l --tasks t --poly 0", "at least 1"),
    ] {
        assert_contains(&words(line).failed(2), &[expected]);
    }
}

#[test]
fn either_of_two_options_is_asked_for() {
    for (line, options) in [
        ("library check", ["--library <L>", "--config <FILE>"]),
        ("generate --base b", ["--prompt <TEXT|->", "--input <FILE.jsonl>"]),
        ("verify --base b", ["--library <L>", "--other-base <B>"]),
    ] {
        assert_contains(&words(line).failed(2), &[&options.join("|")]);
    }
    let both = words("library check --library l --config c").failed(2);
    assert_contains(&both, &["--config <FILE>", "cannot be used with"]);
    assert_contains(&words("library check experts").failed(2), &["a library as --library experts", "--config experts"]);
    assert_contains(&words("task ls --help").ok().stdout, &["hub:datasets/ORG/NAME"]);
}

/// As every other command has it.
#[test]
fn base_info_also_takes_base_as_an_option() {
    let info = |line: &str| words(&format!("base info {line} --json")).json();
    assert_eq!(info("--base pico")["parameters"], info("pico")["parameters"]);
    assert_contains(&words("base info").failed(2), &["<B>"]);
    let help = words("base info --help").ok().stdout;
    assert!(help.contains("base info [OPTIONS] <B>") && !help.contains("--base <B>"), "{help}");
}

#[test]
fn unknown_routers_list_the_known() {
    assert_contains(&words("eval --base b --tasks t --router arow").failed(2), &["arow", "arrow", "uniform", "oracle"]);
    assert_contains(
        &words("eval --base b --tasks t --router arrow:topk=1").failed(2),
        &["topk", "top_k=4", "temperature=1"],
    );
}

#[test]
fn manual_pages_are_printed_and_written() {
    assert_contains(&words("man").ok().stdout, &[".TH lorakit", "train\\-experts"]);
    let folder = tempfile::tempdir().unwrap();
    run(["man", "--out", folder.path().to_str().unwrap()]).ok();
    for page in ["lorakit.1", "lorakit-eval.1", "lorakit-library-export.1"] {
        assert_contains(&fs::read_to_string(folder.path().join(page)).unwrap(), &[".SH SYNOPSIS"]);
    }
}

#[test]
fn options_of_other_programs_are_recognized() {
    let message = words("generate --base b --prompt x --max-tokens 5").failed(2);
    assert_contains(&message, &["--max-tokens", "--max-new-tokens"]);
}

#[test]
fn unknown_settings_are_named() {
    let fixed = "train-experts --base b --library l --tasks t --set";
    for (setting, parts) in [
        ("rnk=4", &["rnk", "did you mean `rank`?"][..]),
        ("lr=1e-3", &["did you mean `learning_rate`?"]),
        ("epochs=3", &["did you mean `num_epochs`?"]),
        ("seed=1", &["unknown setting `seed`", "global option --seed"]),
        ("use_rslora=yes", &["use_rslora=yes", "true or false"]),
        ("rank", &["rank", "key=value"]),
        ("rank=0", &["rank", "0"]),
        ("rank=four", &["rank=four"]),
        ("dropout=1", &["dropout"]),
        ("lr_scheduler=sometimes", &["sometimes", "linear"]),
        ("learning_rate=-1", &["learning_rate"]),
    ] {
        assert_contains(&words(&format!("{fixed} {setting}")).failed(2), parts);
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("settings.toml");
    fs::write(&config, "rank = 4\nalfa = 2\n").unwrap();
    assert_contains(
        &words(&format!("train-experts --base b --library l --tasks t --config {}", config.display())).failed(1),
        &["settings.toml", "alfa", "did you mean `alpha`?"],
    );
}

#[test]
fn global_options_before_and_after_the_command() {
    let base = peft_fixture("phi").join("base");
    let base = base.to_str().unwrap();
    let before = run(["--json", "--threads", "1", "base", "info", base]).json();
    let after = run(["base", "info", base, "--threads", "2", "--json"]).json();
    assert_eq!(before["fingerprint"], after["fingerprint"]);
    assert_eq!(before["architecture"], "phi");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_behind_stdout_is_named() {
    for line in [&["base", "info", "pico"][..], &["--help"], &["help", "eval"], &["--version"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ran: Ran = command(line).stdout(full).output().unwrap().into();
        assert_contains(&ran.failed(1), &["cannot write to stdout: No space left"]);
    }
}

#[test]
fn huge_numbers_are_refused() {
    for (line, code, parts) in [
        ("base info pico --threads 100000", 2, &["--threads", "1024"][..]),
        ("base info pico --threads 0", 2, &["1 to 1024"]),
        ("cluster --library l --out c.json -k 99999999999999999999", 2, &["whole number"]),
        ("train-experts --base b --library l --tasks t --set rank=99999999999999999999", 2, &["rank", "whole number"]),
        ("train-experts --base b --library l --tasks t --set rank=-1", 2, &["rank=-1", "whole number"]),
        ("train-experts --base b --library l --tasks t --set learning_rate=nan", 2, &["learning_rate", "number"]),
        ("train-experts --base b --library l --tasks t --config /dev/zero", 1, &["/dev/zero", "longer than"]),
        ("task ls /dev/zero", 1, &["/dev/zero", "device"]),
    ] {
        assert_contains(&words(line).failed(code), parts);
    }
    let folder = tempfile::tempdir().unwrap();
    let (library, task) = (folder.path().join("l"), folder.path().join("t.json"));
    fs::write(&task, r#"[{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]"#).unwrap();
    let train = |setting: &str, code: i32| {
        let fixed = ["train-experts", "--base", "pico"];
        let files = ["--library", library.to_str().unwrap(), "--tasks", task.to_str().unwrap(), "--set", setting];
        run(fixed.into_iter().chain(files)).failed(code)
    };
    // pico's widest projections of the attention are 128 by 128.
    assert_contains(&train("rank=100000", 1), &["`rank` is 100000", "at most 128", "pico"]);
    assert_contains(&train("rank=129", 1), &["`rank` is 129", "at most 128"]);
    assert_contains(&train("rank=1000000000", 2), &["rank", "at most"]);
    assert_contains(&train("batch_size=4294967296", 2), &["batch_size", "at most"]);
    assert!(!library.join("experts/t").exists());
    let info = |setting: &str| words(&format!("base info pico --set {setting}")).ok().stderr;
    assert_contains(&info("rank=65"), &["rank 65", "8 of 16", "k_proj", "maximum rank (64)"]);
    assert!(!info("rank=64").contains("rank"), "{}", info("rank=64"));
    words("base info pico --set rank=129").failed(1);
    // The widest of all linear projections is no smaller than 128 on either side.
    words("base info pico --set rank=128 target_modules=all-linear").ok();
}
