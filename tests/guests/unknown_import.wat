;; Wants two functions that no engine has.
(module
  (import "env" "launch_rocket" (func $launch (param i32) (result i32)))
  (import "acme:weather/today" "temperature" (func $temperature (result f64)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $launch (i32.const 1)))
    (drop (call $temperature))))
