;; Its start section never ends, so instantiation never ends.
(module
  (memory (export "memory") 1)
  (func $loop_in_start (loop $again (br $again)))
  (func (export "_start"))
  (start $loop_in_start))
