//! Which file of a crate imports which, with `crate::`, `self::`, `super::` and re-exports resolved.
//!
//! A file has an edge to the file that defines an item it names, and to each file whose re-export the path goes
//! through.

use crate::source::code;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The path of a module within its crate, as `["merge", "ties"]`.
type Module = Vec<String>;

/// The modules of a crate, by path.
pub struct Crate {
    modules: BTreeMap<Module, Source>,
}

struct Source {
    /// The code without its `use` declarations.
    body: String,
    /// What each imported name stands for, as a path.
    imports: Vec<(String, Module)>,
}

impl Crate {
    /// Reads the modules below the root file of a crate.
    pub fn read(root: &Path) -> Self {
        let mut modules = BTreeMap::new();
        read_module(root, Module::new(), &mut modules);
        Self { modules }
    }

    /// For each module, the modules that it imports from.
    pub fn edges(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let edges = |(module, source): (_, &Source)| {
            let imported = source.imports.iter().map(|(_, path)| path.clone());
            let targets = imported.chain(inline_paths(&source.body)).flat_map(|path| self.resolve(module, &path, 0));
            (module, targets.filter(|target| target != module).collect())
        };
        self.modules.iter().map(edges).collect()
    }

    /// The modules that a path written in `module` goes through.
    fn resolve(&self, module: &Module, path: &[String], depth: usize) -> BTreeSet<Module> {
        let Some(first) = path.first().filter(|_| depth < 8) else { return BTreeSet::new() };
        let mut rest = path;
        let mut at = match first.as_str() {
            "crate" => Module::new(),
            "self" | "super" => module.clone(),
            name if self.child(module, name).is_some() => module.clone(),
            name => return self.through_import(module, name, &path[1..], depth),
        };
        if matches!(first.as_str(), "crate" | "self") {
            rest = &rest[1..];
        }
        while rest.first().is_some_and(|segment| segment == "super") {
            at.pop();
            rest = &rest[1..];
        }
        while let Some(child) = rest.first().and_then(|segment| self.child(&at, segment)) {
            (at, rest) = (child, &rest[1..]);
        }
        let mut found = BTreeSet::from([at.clone()]);
        if let (Some(name), true) = (rest.first(), &at != module) {
            found.extend(self.through_import(&at, name, &rest[1..], depth));
        }
        found
    }

    /// Where a name that `module` imports or re-exports resolves to.
    fn through_import(&self, module: &Module, name: &str, rest: &[String], depth: usize) -> BTreeSet<Module> {
        let imports = &self.modules[module].imports;
        let Some((_, path)) = imports.iter().find(|(imported, path)| imported == name && path[0] != name) else {
            return BTreeSet::new();
        };
        self.resolve(module, &[path, rest].concat(), depth + 1)
    }

    fn child(&self, module: &Module, name: &str) -> Option<Module> {
        let child = [module.as_slice(), &[name.to_owned()]].concat();
        self.modules.contains_key(&child).then_some(child)
    }

    /// Groups of modules that import each other, directly or indirectly (strongly connected components).
    pub fn circles(&self) -> Vec<Vec<String>> {
        let edges = self.edges();
        let reachable: BTreeMap<&Module, BTreeSet<&Module>> =
            edges.keys().map(|module| (*module, reachable(module, &edges))).collect();
        let mut circles = BTreeSet::new();
        for (module, reached) in &reachable {
            let circle: BTreeSet<&Module> =
                reached.iter().copied().filter(|other| reachable[other].contains(module)).collect();
            if !circle.is_empty() {
                circles.insert(circle);
            }
        }
        let name = |module: &Module| if module.is_empty() { "the root".to_owned() } else { module.join("::") };
        circles.into_iter().map(|circle| circle.into_iter().map(name).collect()).collect()
    }
}

fn reachable<'a>(from: &Module, edges: &'a BTreeMap<&Module, BTreeSet<Module>>) -> BTreeSet<&'a Module> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&Module> = edges[from].iter().collect();
    while let Some(module) = open.pop() {
        if reached.insert(module) {
            open.extend(&edges[module]);
        }
    }
    reached
}

fn read_module(file: &Path, module: Module, modules: &mut BTreeMap<Module, Source>) {
    let text = code(&fs::read_to_string(file).unwrap());
    let is_folder = ["lib", "main", "mod"].contains(&file.file_stem().unwrap().to_str().unwrap());
    let folder = if is_folder { file.parent().unwrap().to_owned() } else { file.with_extension("") };
    let declared: Vec<String> = statements(&text, "mod").filter(|name| is_name(name)).map(str::to_owned).collect();
    let imports =
        statements(&text, "use").flat_map(|tree| expand(&tree.split_whitespace().collect::<Vec<_>>().join(" "), &[]));
    let imports = imports.collect();
    let mut body = text.clone();
    for tree in statements(&text, "use") {
        body = body.replace(&format!("use {tree};"), "");
    }
    modules.insert(module.clone(), Source { body, imports });
    for name in declared {
        let candidates = [folder.join(format!("{name}.rs")), folder.join(&name).join("mod.rs")];
        if let Some(file) = candidates.iter().find(|file: &&PathBuf| file.exists()) {
            read_module(file, [module.as_slice(), &[name]].concat(), modules);
        }
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|char| char.is_alphanumeric() || char == '_')
}

/// The text between a keyword and the next semicolon.
fn statements<'a>(text: &'a str, keyword: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(keyword).filter_map(move |(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + keyword.len()..].strip_prefix(' ')?;
        let stands_alone = before.is_none_or(|char| !char.is_alphanumeric() && char != '_');
        let end = after.find(';')?;
        stands_alone.then(|| &after[..end])
    })
}

/// The names that a `use` tree imports, each with its path.
fn expand(tree: &str, prefix: &[String]) -> Vec<(String, Module)> {
    let tree = tree.trim();
    if let Some((head, inner)) = tree.split_once('{') {
        let prefix = [prefix, &segments(head)].concat();
        let inner = inner.trim_end().strip_suffix('}').unwrap_or(inner);
        return top_level_items(inner).into_iter().flat_map(|item| expand(item, &prefix)).collect();
    }
    let (path, alias) = tree.split_once(" as ").map_or((tree, None), |(path, alias)| (path, Some(alias.trim())));
    let mut path = [prefix, &segments(path)].concat();
    if path.last().is_some_and(|segment| segment == "self") {
        path.pop();
    }
    let Some(last) = path.last().cloned() else { return Vec::new() };
    vec![(alias.map_or(last, str::to_owned), path)]
}

fn segments(path: &str) -> Module {
    path.split("::").map(str::trim).filter(|segment| !segment.is_empty()).map(str::to_owned).collect()
}

/// The parts of a list, split at its outermost commas.
fn top_level_items(list: &str) -> Vec<&str> {
    let (mut items, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, char) in list.char_indices() {
        match char {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(&list[start..]);
    items.into_iter().filter(|item| !item.trim().is_empty()).collect()
}

/// Paths of two or more segments in code, as in `super::mean(x)`.
fn inline_paths(body: &str) -> Vec<Module> {
    let words = body.split(|char: char| !char.is_alphanumeric() && char != '_' && char != ':');
    let paths = words.filter(|word| word.contains("::")).map(segments);
    paths.filter(|path| path.len() > 1).collect()
}

#[test]
fn circles_are_found_through_re_exports_and_not_in_tests() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let circles = |root: &str| {
        write("lib.rs", root);
        Crate::read(&folder.path().join("lib.rs")).circles()
    };
    write("a.rs", "use crate::b::B;\npub struct A(B);");
    write("b.rs", "pub struct B;\n#[cfg(test)]\nmod tests { use crate::a::A; }");
    assert!(circles("mod a;\nmod b;").is_empty());
    write("b.rs", "pub struct B;\nfn f(_: super::a::A) {}");
    assert_eq!(circles("mod a;\nmod b;"), [["a", "b"]]);
    write("b.rs", "use crate::{self as root, C};\npub struct B(C);");
    write("c.rs", "pub struct C;");
    assert_eq!(circles("mod a;\nmod b;\nmod c;\npub use {b::B, c::C};"), [["the root", "b"]]);
}
