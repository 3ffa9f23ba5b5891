//! The Jinja dialect of task templates and chat templates: what lm-evaluation-harness and transformers give a template.

pub(crate) mod environment;
mod python_json;
mod python_methods;
mod text_limit;
