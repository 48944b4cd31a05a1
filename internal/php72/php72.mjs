// PHP 7.2 as a program: runs the script FILE, or the one on standard input; with -l it only compiles the files.
// It sees this machine's files and its network.
import fs from 'fs';
import { PHP } from '@php-wasm/universal';
import { loadNodeRuntime, useHostFilesystem } from '@php-wasm/node';

// A script's nonzero exit code is not an error of the runtime, which would print its own stack trace.
console.log = console.error = console.warn = console.debug = () => {};

const args = process.argv.slice(2);
const lint = args[0] === '-l';
const php = new PHP(await loadNodeRuntime('7.2'));
php.mkdir('/internal/script');

let code = 0;
if (lint) {
	// Code after the return is compiled but not run.
	for (const file of args.slice(1)) {
		php.writeFile('/internal/script/lint.php', `<?php
			register_shutdown_function(function () {
				$e = error_get_last();
				echo PHP_VERSION, $e ? ": $e[message] on line $e[line]" : ': compiles';
			});
			error_reporting(E_ALL);
			ini_set('display_errors', '0');
			eval('return; ?>' . base64_decode('${fs.readFileSync(file).toString('base64')}'));`);
		let text;
		try {
			text = (await php.run({ scriptPath: '/internal/script/lint.php' })).text;
		} catch (e) {
			text = e.response ? e.response.text : String(e);
		}
		process.stdout.write(`${file}: ${text}\n`);
		if (!/^7\.2\.34\S*: compiles$/.test(text)) code = 1;
	}
} else {
	useHostFilesystem(php);
	const script = fs.readFileSync(args.length ? args[0] : 0);
	let path = args.length ? fs.realpathSync(args[0]) : '/internal/script/stdin.php';
	if (!args.length) php.writeFile(path, script);
	let answer;
	try {
		answer = await php.run({ scriptPath: path });
	} catch (e) {
		if (!e.response) throw e;
		answer = e.response;
	}
	process.stdout.write(Buffer.from(answer.bytes));
	process.stderr.write(answer.errors);
	code = answer.exitCode;
}
process.exit(code);
