use siteline_stages::kind::*; use siteline_pipeline::protocol::*;
fn main(){ let steps:usize=std::env::args().nth(1).unwrap().parse().unwrap(); let out=std::env::args().nth(2).unwrap();
 let extra: serde_json::Value = std::env::args().nth(3).map(|s| serde_json::from_str(&s).unwrap()).unwrap_or(serde_json::json!({}));
 std::fs::create_dir_all(&out).unwrap();
 let mut p=serde_json::json!({"steps":steps}); for (k,v) in extra.as_object().unwrap() {p[k]=v.clone();}
 let r=RunRequest{instance:"x".into(),kind:"phantom-clip".into(),params:p,inputs:vec![],sources:Default::default(),output_dir:out.into(),threads:2,gpu:None};
 let t=std::time::Instant::now();
 let say=|r:Reply|{ if let Reply::Progress{..}=r {} else {println!("{:.0?} {:?}",t.elapsed(),r)} };
 let ctx=Ctx::new(&r,&say); phantom_clip::run(&ctx).unwrap(); println!("{:?}",t.elapsed()); }
