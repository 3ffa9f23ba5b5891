//! Skills with routing, Poly and MHR, with the binary and its bundled base.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;
mod four_tasks;

use binary::words;
use four_tasks::{loss, train};
use serde_json::Value;
use std::fs;
use std::path::Path;

#[test]
fn poly_and_mhr() {
    let work = tempfile::tempdir().unwrap();
    for (name, splits) in [("poly", 1), ("mhr", 4)] {
        let library = work.path().join(name);
        let options = format!("--{name} 3 --set max_steps=6 --set learning_rate=1e-2 --set splits=4");
        let trained = train(&library, &options).json();
        assert_eq!((&trained["experts"][0]["expert"], &trained["experts"][0]["steps"]), (&name.into(), &24.into()));
        assert_eq!(train(&library, &options).json()["experts"][0]["status"], "finished before");
        let routing = fs::read_to_string(library.join("routers").join(name).join("router.json")).unwrap();
        let routing: Value = serde_json::from_str(&routing).unwrap();
        assert_eq!(routing["experts"].as_array().unwrap().len(), 3);
        assert_eq!((&routing["of"]["splits"], &routing["of"]["tasks"][3]), (&splits.into(), &"order_left".into()));
        let listed = words(&format!("library ls --json --library {}", library.display())).json();
        assert_eq!(listed["experts"].as_array().unwrap().len(), 3);
        assert_eq!(words(&format!("library check --library {}", library.display())).code, 0);

        let slots = format!("--library {}", library.display());
        let own = loss("pico", &slots, name);
        let mean = loss("pico", &slots, &format!("{name}:unseen=mean"));
        assert!(own < loss("pico", "", "base"), "training must help");
        assert_eq!(own, mean, "a task trained on has its own routing");
        // The routing of a new task is fitted, and beats the mean routing on its training rows.
        let fresh = |router: &str| {
            let fixed =
                format!("eval --json --base pico {slots} --tasks suite:skills/shift_down1 --limit 8 --split train");
            let scores = words(&format!("{fixed} --router {router}")).json();
            scores["results"][router]["shift_down1"]["metrics"]["loss"]["value"].as_f64().unwrap()
        };
        let fitted = fresh(&format!("{name}:rows=8,steps=30"));
        assert!(fitted < fresh(&format!("{name}:unseen=mean")), "{name}: {fitted}");
        // Without a task, the mean is used.
        let generate = format!("generate --base pico {slots} --prompt x --max-new-tokens 2 --router {name}");
        assert!(words(&generate).failed(1).contains("--fit"));
        words(&format!("{generate}:unseen=mean")).ok();
    }
}

#[test]
fn a_task_keeps_its_own_routing_when_its_rows_were_fitted_before() {
    let work = tempfile::tempdir().unwrap();
    let library = work.path().join("l");
    train(&library, "--poly 2 --set max_steps=6 --set learning_rate=1e-2").ok();
    let eval = |options: &str| {
        words(&format!("eval --json --base pico --library {} --limit 4 --router {options}", library.display())).json()
    };
    // The rows of a task that the skills were trained on, as given rows for another one.
    let fitted = "poly:rows=4,steps=2";
    eval(&format!("{fitted} --tasks suite:skills/order_left --fit suite:skills/shift_up1"));
    let scores = eval(&format!("{fitted} poly:unseen=mean --tasks suite:skills/shift_up1"));
    let of = |router: &str| scores["results"][router]["shift_up1"]["metrics"]["loss"]["value"].as_f64().unwrap();
    assert_eq!(of(fitted), of("poly:unseen=mean"), "both are the routing of its training");
}

#[test]
fn skills_do_not_replace_experts() {
    let work = tempfile::tempdir().unwrap();
    let library = work.path().join("l");
    train(&library, "--set max_steps=1").ok();
    let own = format!("{}/experts/shift_up1", library.display());
    words(&format!("library add --library {} poly_1={own}", library.display())).ok();
    let message = train(&library, "--poly 2 --set max_steps=1").failed(1);
    assert!(message.contains("`poly_1`") && message.contains("--restart"), "{message}");
    train(&library, "--poly 3 --restart --set max_steps=1").ok();
    train(&library, "--poly 2 --restart --set max_steps=1").ok();
    let listed = words(&format!("library ls --json --library {}", library.display())).json();
    let names: Vec<&str> = listed["experts"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["order_left", "order_reverse", "poly_0", "poly_1", "shift_up1", "shift_up2"]);
    let message = train(&library, "--mhr 2 --set splits=7").failed(1);
    assert!(message.contains("cannot be split in 7"), "{message}");
}

#[test]
fn adapt_tunes_the_chosen_experts_or_all_where_no_skill_is_left() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).display().to_string();
    train(&work.path().join("l"), "--set max_steps=1").ok();
    train(&work.path().join("l"), "--poly 2 --set max_steps=1").ok();
    let adapt = |out: &str, options: &str| {
        words(&format!(
            "adapt --json --base pico --library {} --tasks suite:skills/shift_down1 --limit 2 {options} --out {} \
             --set max_steps=1 --set batch_size=4",
            path("l"),
            path(out)
        ))
    };
    let routing = |out: &str| -> Value {
        let record = fs::read_to_string(path(&format!("{out}/experts/shift_down1/expert.json"))).unwrap();
        serde_json::from_str::<Value>(&record).unwrap()["settings"]["routing"].clone()
    };
    adapt("skills", "--method poly_z --experts poly_0,poly_1,shift_up1").ok();
    assert!(routing("skills").is_string(), "the skills are those of the routing");
    for (out, experts) in [("others", "shift_up1,order_left"), ("some", "poly_1,shift_up1")] {
        adapt(out, &format!("--method poly --experts {experts}")).ok();
        assert!(routing(out).is_null(), "{out}");
    }
    let remove = |name: &str| words(&format!("library rm --library {} {name}", path("l"))).ok();
    remove("poly_0");
    let message = adapt("lost", "--method poly_z").failed(1);
    assert!(message.contains("`poly_0` is no longer in the library"), "{message}");
    remove("poly_1");
    for method in ["poly", "poly_z"] {
        adapt(method, &format!("--method {method}")).ok();
        assert!(routing(method).is_null(), "{method}");
    }
}

#[test]
fn routings_refuse_other_skills() {
    let work = tempfile::tempdir().unwrap();
    let (library, other) = (work.path().join("l"), work.path().join("other"));
    let options = "--poly 2 --set max_steps=2";
    train(&library, options).ok();
    train(&other, &format!("{options} --set learning_rate=1e-2")).ok();
    let slots = format!("--library {}", library.display());
    let eval = || {
        words(&format!(
            "eval --json --base pico {slots} --limit 2 --tasks suite:skills/shift_down1 --router poly:rows=4,steps=2"
        ))
    };
    let check = || words(&format!("library check --json {slots}"));
    assert!(eval().ok().stderr.contains("fitting to rows"));
    assert!(!eval().ok().stderr.contains("fitting to rows"), "the fit is cached");
    assert_eq!(check().json()["routers"].as_array().unwrap().len(), 2);

    // With another routing of the same skills, state fitted from the first is not used.
    let file = library.join("routers/poly/router.json");
    let record = fs::read_to_string(&file).unwrap();
    fs::write(&file, record.replace("order_left", "order_gone")).unwrap();
    assert!(eval().ok().stderr.contains("fitting to rows"), "another routing requires a new fit");
    fs::write(&file, &record).unwrap();

    // State after a kill during retraining, when the first skill was already replaced.
    let skill = |library: &Path| library.join("experts/poly_0");
    fs::remove_dir_all(skill(&library)).unwrap();
    fs::create_dir(skill(&library)).unwrap();
    for entry in fs::read_dir(skill(&other)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), skill(&library).join(entry.file_name())).unwrap();
    }
    let message = eval().failed(1);
    assert!(
        message.contains("routers/poly") && message.contains("poly_0") && message.contains("--restart"),
        "{message}"
    );
    let checked = check();
    assert_eq!(checked.code, 1);
    assert!(checked.stderr.contains("1 router of "), "{}", checked.stderr);
    let document: Value = serde_json::from_str(&checked.stdout).unwrap();
    let found = document["routers"].as_array().unwrap();
    let error = |router: &Value| router["error"].as_str().unwrap_or_default().contains("--restart");
    assert_eq!(
        found.iter().filter(|router| error(router)).map(|router| &router["router"]).collect::<Vec<_>>(),
        ["poly"]
    );
    let stale = |router: &&Value| router["notices"][0]["text"].as_str().is_some_and(|text| text.contains("not used"));
    assert_eq!(found.iter().filter(stale).count(), found.len() - 1, "{document}");
    train(&library, &format!("{options} --restart")).ok();
    eval().ok();

    // State after a kill during a first training: skills without a routing.
    fs::remove_dir_all(library.join("routers/poly")).unwrap();
    let message = eval().failed(1);
    assert!(message.contains("did not end") && message.contains("--poly"), "{message}");
    assert_eq!(check().code, 0);

    let learned = fs::read_dir(library.join("routers")).unwrap().map(|entry| entry.unwrap().path());
    let learned = learned.into_iter().find(|path| !path.ends_with("poly")).unwrap();
    fs::write(learned.join("router.safetensors"), "damaged").unwrap();
    let damaged = check();
    assert_eq!(damaged.code, 1);
    assert!(damaged.stdout.contains("router.safetensors: has the sha256"), "{}", damaged.stdout);
}
