//! The SVG plots that `compare` writes: well-formed XML, with the numbers of results.json in the right places.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;

use binary::run;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// An element of an XML document, with the text directly in it.
#[derive(Debug)]
struct Element {
    name: String,
    attributes: BTreeMap<String, String>,
    text: String,
}

impl Element {
    fn number(&self, attribute: &str) -> f64 {
        self.attributes[attribute].parse().unwrap()
    }
}

/// All elements of a document in the order of their start tags, which must be closed in order and hold no bare `<` or `&`.
fn elements(document: &str) -> Vec<Element> {
    let mut found: Vec<Element> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let mut rest = document.trim();
    while let Some(tag) = rest.strip_prefix('<') {
        let (tag, after) = tag.split_once('>').unwrap();
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(found[open.pop().unwrap()].name, name);
        } else {
            let (name, mut attributes) = tag.trim_end_matches('/').split_once(' ').unwrap_or((tag, ""));
            let mut read = BTreeMap::new();
            while let Some((key, value)) = attributes.trim().split_once("=\"") {
                let (value, others) = value.split_once('"').unwrap();
                assert!(read.insert(key.to_owned(), unescaped(value)).is_none(), "{key} twice in <{tag}>");
                attributes = others;
            }
            assert_eq!(attributes.trim(), "", "in <{tag}>");
            found.push(Element { name: name.to_owned(), attributes: read, text: String::new() });
            if !tag.ends_with('/') {
                open.push(found.len() - 1);
            }
        }
        let (text, next) = after.split_at(after.find('<').unwrap_or(after.len()));
        if let Some(at) = open.last() {
            found[*at].text.push_str(&unescaped(text));
        }
        rest = next;
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "not closed: {open:?} {rest}");
    found
}

fn unescaped(text: &str) -> String {
    assert!(!text.contains('<') && text.chars().all(|char| !char.is_control() || char == '\n'), "{text}");
    let known = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#x27;", "'"), ("&#x2f;", "/")];
    let text = known.iter().fold(text.to_owned(), |text, (entity, char)| text.replace(entity, char));
    assert!(!text.replace("&amp;", "").contains('&'), "{text}");
    text.replace("&amp;", "&")
}

/// Writes a run: the loss of each router by task.
fn write_run(folder: &Path, losses: &[(&str, &[(&str, f64)])]) {
    let tasks = |scores: &[(&str, f64)]| -> Value {
        let task = |(name, loss): &(&str, f64)| {
            ((*name).to_owned(), json!({ "n": 4, "metrics": { "loss": { "value": loss, "stderr": 0.125 } } }))
        };
        Value::Object(scores.iter().map(task).collect())
    };
    let routers: serde_json::Map<String, Value> =
        losses.iter().map(|(router, scores)| ((*router).to_owned(), tasks(scores))).collect();
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("results.json"), json!({ "results": routers }).to_string()).unwrap();
}

/// A row of a table file.
fn row(label: &str, router: &str, more: &str) -> String {
    format!("[[row]]\nlabel = {label:?}\nresults = \".\"\nrouter = {router:?}\n{more}\n")
}

/// Runs `compare` over one run, and returns what it wrote.
fn compare(folder: &Path, table: &str) -> (Value, impl Fn(&str) -> Option<String> + use<>) {
    fs::write(folder.join("table.toml"), table).unwrap();
    let [file, runs] = ["table.toml", "run"].map(|name| folder.join(name).display().to_string());
    let out = folder.join("out");
    let document = run(["compare", "--json", &file, "--runs", &runs, "--out", &out.display().to_string()]).json();
    let text = fs::read_to_string(out.join("results.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), document);
    (document, move |name: &str| fs::read_to_string(out.join(name)).ok())
}

const COLUMN: &str =
    "title = \"Losses\"\nx_axis = \"experts\"\n[[column]]\nname = \"loss\"\nmetric = \"loss\"\ndigits = 2\n";

/// The circle that a title says is of `what`, with the title.
fn circle<'a>(elements: &'a [Element], what: &str) -> (&'a Element, &'a str) {
    let at = elements.iter().position(|e| e.name == "title" && e.text.starts_with(&format!("{what}: "))).expect(what);
    let is_circle = |element: &&Element| element.name == "circle";
    // A dot has its title inside; the title of a row stands before its marks.
    let inside = elements[..at].last().filter(is_circle);
    let circle = inside.or_else(|| elements[at..].iter().find(is_circle)).expect(what);
    (circle, &elements[at].text)
}

/// Asserts that positions are an increasing or decreasing linear function of the values, up to rounding.
fn assert_linear(values: &[f64], positions: &[f64]) {
    let last = values.len() - 1;
    let slope = (positions[last] - positions[0]) / (values[last] - values[0]);
    for (value, position) in values.iter().zip(positions) {
        let expected = positions[0] + slope * (value - values[0]);
        assert!((position - expected).abs() < 0.3, "{values:?} {positions:?}");
    }
}

#[test]
fn marks_stand_where_the_numbers_of_results_json_are() {
    let folder = tempfile::tempdir().unwrap();
    let tasks = ["a", "b", "c", "d", "e", "f", "g"];
    let scores = |shift: f64| -> Vec<(&str, f64)> {
        tasks.iter().enumerate().map(|(at, task)| (*task, shift + 0.25 * at as f64 * shift)).collect()
    };
    let (base, arrow, own) = (scores(4.0), scores(3.0), scores(1.0));
    write_run(&folder.path().join("run"), &[("base", &base), ("arrow", &arrow), ("oracle", &own)]);
    let rows = [
        COLUMN.to_owned(),
        row("base", "base", "x = 1\nseries = \"s\""),
        row("Arrow", "arrow", "x = 4\nseries = \"s\""),
        row("own", "oracle", "x = 16\nseries = \"s\""),
        "[[claim]]\ntext = \"Arrow helps\"\nbetter = \"Arrow\"\nworse = \"base\"\n".to_owned(),
    ];
    let (document, file) = compare(folder.path(), &rows.concat());

    let scores = elements(&file("scores.svg").unwrap());
    let curves = elements(&file("curves.svg").unwrap());
    let (mut values, mut across, mut up) = (Vec::new(), Vec::new(), Vec::new());
    for (row, x) in document["rows"].as_array().unwrap().iter().zip([1, 4, 16]) {
        let (label, score) = (row["label"].as_str().unwrap(), &row["scores"]["loss"]);
        let (value, error) = (score["value"].as_f64().unwrap(), score["stderr"].as_f64().unwrap());
        let (mark, title) = circle(&scores, label);
        assert_eq!(title, format!("{label}: {value:.2} ±{error:.2}"));
        assert!(
            scores.iter().any(|element| element.name == "text" && element.text == format!("{value:.2} ±{error:.2}"))
        );
        let (point, title) = circle(&curves, &format!("s, {x}"));
        assert_eq!(title, format!("s, {x}: {value:.2}"));
        assert_eq!((row["x"].as_f64(), row["series"].as_str()), (Some(f64::from(x)), Some("s")));
        values.push(value);
        across.push(mark.number("cx"));
        up.push(point.number("cy"));
    }
    assert_linear(&values, &across);
    assert_linear(&values, &up);
    assert!(across[0] > across[2] && up[0] < up[2], "right and up are more");

    let differences = elements(&file("differences.svg").unwrap());
    let claim = &document["claims"][0];
    let gains: Vec<f64> = tasks.iter().map(|task| claim["by_task"][*task].as_f64().unwrap()).collect();
    assert_eq!((gains[0], gains[4]), (1.0, 2.0), "a lower loss is a gain");
    let dots: Vec<f64> = tasks.iter().map(|task| circle(&differences, task).0.number("cx")).collect();
    assert_linear(&gains, &dots);
    let (gain, [low, high]) = (&claim["gain"], [0, 1].map(|end| claim["gain"]["interval"][end].as_f64().unwrap()));
    let said = format!("held: {:+.2}, 95 % from {low:+.2} to {high:+.2}", gain["mean"].as_f64().unwrap());
    assert!(differences.iter().any(|element| element.text == said), "{said}: {differences:?}");
}

#[test]
fn names_are_escaped_and_follow_light_and_dark() {
    let folder = tempfile::tempdir().unwrap();
    let task = "</title>&\u{1}";
    let tasks: &[(&str, f64)] = &[(task, 1.0)];
    write_run(&folder.path().join("run"), &[("base", tasks), ("arrow", tasks)]);
    let title = "<script>alert(1)</script> & \\\"more\\\"";
    let rows = [
        COLUMN.replace("Losses", title),
        row("a<b>", "base", "sees = \"<i>\"\nx = 1\nseries = \"&amp;\""),
        row("'\"", "arrow", "sees = \"x\""),
        "[[claim]]\ntext = \"1 < 2 && 3\"\nbetter = \"a<b>\"\nworse = \"'\\\"\"\n".to_owned(),
    ];
    let (_, file) = compare(folder.path(), &rows.concat());
    for name in ["scores.svg", "differences.svg", "curves.svg"] {
        let svg = file(name).unwrap();
        let texts: Vec<String> = elements(&svg).into_iter().map(|element| element.text).collect();
        assert!(texts.contains(&"<script>alert(1)</script> & \"more\"".to_owned()), "{name}: {texts:?}");
        assert!(svg.contains("prefers-color-scheme: dark") && !svg.contains("<script"), "{name}");
        assert!(svg.matches("http").count() == 1, "{name}: nothing but the name space");
    }
    let texts = |name: &str| elements(&file(name).unwrap()).into_iter().map(|element| element.text).collect::<Vec<_>>();
    assert!(texts("scores.svg").contains(&"a<b>".to_owned()) && texts("scores.svg").contains(&"sees <i>".to_owned()));
    assert!(texts("differences.svg").contains(&"1 < 2 && 3".to_owned()));
    assert!(texts("differences.svg").contains(&"</title>&\u{fffd}: +0.00".to_owned()));
    assert!(texts("curves.svg").contains(&"&amp;".to_owned()));
}

#[test]
fn wide_characters_have_room() {
    let folder = tempfile::tempdir().unwrap();
    let tasks: &[(&str, f64)] = &[("a", 2.5)];
    write_run(&folder.path().join("run"), &[("base", tasks)]);
    let axis = |label: &str| {
        let (_, file) = compare(folder.path(), &(COLUMN.to_owned() + &row(label, "base", "")));
        circle(&elements(&file("scores.svg").unwrap()), label).0.number("cx")
    };
    assert_eq!(axis("翻訳の課題"), axis("abcdefghij"));
}

#[test]
fn one_score_and_none_are_plots_too() {
    let folder = tempfile::tempdir().unwrap();
    write_run(&folder.path().join("run"), &[("base", &[("a", 2.5)])]);
    let claim = "[[claim]]\ntext = \"Arrow helps\"\nbetter = \"Arrow\"\nworse = \"base\"\n";
    let table = COLUMN.to_owned() + &row("base", "base", "") + &row("Arrow", "arrow", "") + claim;
    let (document, file) = compare(folder.path(), &table);
    assert!(document["claims"][0]["gain"].is_null());
    let scores = elements(&file("scores.svg").unwrap());
    assert_eq!(scores.iter().filter(|element| element.name == "circle").count(), 1, "Arrow has no score");
    assert!(!scores.iter().any(|element| element.text == "Arrow"), "a row without a score is left out");
    assert_eq!((file("differences.svg"), file("curves.svg")), (None, None), "nothing to show");
}

#[test]
fn plots_that_a_table_no_longer_has_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let tasks: &[(&str, f64)] = &[("a", 2.5), ("b", 1.0)];
    write_run(&folder.path().join("run"), &[("base", tasks), ("arrow", tasks)]);
    let rows = row("base", "base", "x = 1\nseries = \"s\"") + &row("Arrow", "arrow", "x = 2\nseries = \"s\"");
    let claim = "[[claim]]\ntext = \"Arrow helps\"\nbetter = \"Arrow\"\nworse = \"base\"\n";
    let (_, file) = compare(folder.path(), &(COLUMN.to_owned() + &rows + claim));
    assert!(file("differences.svg").is_some() && file("curves.svg").is_some());
    let others = ["notes.svg", "scores.svg.bak"];
    for name in others {
        fs::write(folder.path().join("out").join(name), name).unwrap();
    }
    let (_, file) =
        compare(folder.path(), &(COLUMN.to_owned() + &row("base", "base", "") + &row("Arrow", "arrow", "")));
    assert_eq!((file("differences.svg"), file("curves.svg")), (None, None), "of the earlier table");
    assert!(file("scores.svg").is_some() && file("table.md").is_some());
    for name in others {
        assert_eq!(file(name).as_deref(), Some(name), "another's file");
    }
}
