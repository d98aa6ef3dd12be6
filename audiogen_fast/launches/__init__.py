"""What Triton kernels are launched with, and what they compile to, without a GPU.

`record` notes launches, `compile` compiles exactly those for any generation of GPU,
`machine_code` reads the result, `traffic` counts the bytes that an interpreted launch moves, and
`cases` lists launches worth looking at. Nothing of the package uses these at run time.
"""
