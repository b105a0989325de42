package integration

import _ "github.com/u-root/u-root/pkg/cpio"
